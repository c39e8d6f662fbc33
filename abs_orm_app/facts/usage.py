"""What the connections of a pool were used for, over some time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of one pool of this process. The connections are means over the time that was seen."""

    seconds: float
    in_use: float
    unused: float  # of those in use: nothing needed them, and they were kept for their request
    waited: int  # requests that found no idle connection
