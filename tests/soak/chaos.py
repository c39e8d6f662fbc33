"""Clients of every kind on one pool, and everything happens to it that can.

    python -m tests.soak.chaos --seconds 600 --mode transaction

It prints what was done, and ends with an error if an acknowledged row is lost, a connection is in
two hands, somebody sees another's rows or session, a wait lasts past its deadline, the server
counts more sessions than the limit, or the pool does not come to rest.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import random
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from time import monotonic
from typing import Any

from tests.soak import clients, faults
from tests.soak.script import Sums, Watchdog, serving
from tests.soak.world import ROOM, SERVER, TIMEOUT, Watch, World
from tests.support.bytecodes import Interrupted
from tests.support.sessions import EVERY_MODE, POOL

THREADS = 40
VIEWS = 20  # async
STUCK = 90.0  # seconds; no fault, and no end of a thread, takes longer


def soak(
    seconds: float,
    mode: str,
    seed: int,
    happens: Mapping[faults.Fault, int] = faults.FAULTS,
    views: int = VIEWS,
) -> Sums:
    """Run it; the caller judges its violations."""
    with ExitStack() as cleanup:
        server = cleanup.enter_context(serving(**SERVER))
        world = World(server, mode, seed)
        cleanup.callback(world.close)
        world.sums.count_ignored(Interrupted)
        watchdog = Watchdog(world.sums, STUCK)
        cleanup.callback(watchdog.end)
        others: list[threading.Thread] = [watch := Watch(world)]
        world.threads = clients.threads(world, THREADS)
        if mode != POOL and views:
            others.append(clients.event_loop(world, THREADS, views))
        for thread in (*world.threads, *others):
            thread.start()
        faults.disturb(world, happens, seconds, watchdog.feed)
        world.over.set()
        end = monotonic() + TIMEOUT + ROOM + 10
        for thread in (*world.threads, *others):
            thread.join(max(0.0, end - monotonic()))
            if thread.is_alive():
                world.sums.violation("a thread hangs", thread.name)
        watchdog.feed()
        if world.sums.violations["a thread hangs"]:
            faulthandler.dump_traceback(all_threads=True)
        gc.collect()
        world.rest()
        world.sums.done["sessions, at most"] = watch.most
        return world.sums


def main(happens: Mapping[faults.Fault, int] = faults.FAULTS, views: int = VIEWS) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--mode", choices=EVERY_MODE, default="request")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    options: Any = parser.parse_args()
    sums = soak(options.seconds, options.mode, options.seed, happens, views)
    sums.done["seed"] = options.seed
    sums.end()


if __name__ == "__main__":
    main()
