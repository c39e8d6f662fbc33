"""The pool's clock: it goes on while the machine is suspended, as the server's does.

`time.monotonic` stands still then, so a connection that the server has given up would look as if it
had been used just now (CLOCK_BOOTTIME of clock_gettime(2)).
"""

from __future__ import annotations

import time
from functools import partial

monotonic = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic
)
