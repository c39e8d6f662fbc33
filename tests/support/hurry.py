"""Let Python switch threads as often as it can."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hurried() -> Iterator[None]:
    """Within the block, a thread may lose the interpreter between any two of its steps."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
