"""The pool's clock, which keeps running while the machine is suspended, as the server's does.

`time.monotonic` stops then, so a connection that the server has already dropped would look recently
used. See CLOCK_BOOTTIME in clock_gettime(2).
"""

from __future__ import annotations

import time
from functools import partial

monotonic = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
