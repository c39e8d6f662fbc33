"""The pool alone, beside psycopg_pool's: a checkout, a crowd that waits, pools at rest.

python -m benchmarks.crowd [--quick]
"""

from __future__ import annotations

import logging
import statistics
import sys
import threading
from collections.abc import Callable
from time import monotonic, perf_counter, process_time, sleep
from typing import Any

from psycopg_pool import ConnectionPool, PoolTimeout

from abs_orm_app.pool.pool import HardenedPool
from tests.support.servers import Server

WAITERS = 1000
TIMEOUT = 8.0  # seconds
POOLS = 50
TURNS = 9  # of each pool
CHECKOUTS = 10_000  # in a turn

Make = Callable[..., Any]


def ours(conninfo: str, **options: Any) -> Any:
    return HardenedPool(conninfo, open=True, **options)


def theirs(conninfo: str, **options: Any) -> Any:
    options.pop("leak_seconds", None)
    return ConnectionPool(conninfo, open=True, **options)


def crowd(make: Make, conninfo: str, limit: int) -> tuple[float, float]:
    """Seconds from the deadline to the last error; share of a core used while all wait."""
    options = {"min_size": limit, "timeout": TIMEOUT, "num_workers": 8, "leak_seconds": 600.0}
    with make(conninfo, **options) as pool:
        pool.wait(60)
        held = [pool.getconn() for _ in range(limit)]
        began: list[float] = []
        late: list[float] = []

        def wait() -> None:
            came = monotonic()
            began.append(came)
            try:
                pool.getconn()
            except PoolTimeout:
                late.append(monotonic() - came - TIMEOUT)

        threads = [threading.Thread(target=wait, daemon=True) for _ in range(WAITERS)]
        for thread in threads:
            thread.start()
        while len(began) < WAITERS:
            sleep(0.01)
        sleep(1.5)
        before, since = process_time(), monotonic()
        sleep(TIMEOUT / 2)
        used = (process_time() - before) / (monotonic() - since)
        for thread in threads:
            thread.join()
        for conn in held:
            pool.putconn(conn)
    return max(late), used


def rest(make: Make, conninfo: str) -> float:
    """Milliseconds of processor time a second that pools take which nobody uses."""
    pools = [make(conninfo, min_size=1) for _ in range(POOLS)]
    for pool in pools:
        pool.wait(60)
    sleep(1)
    before, since = process_time(), monotonic()
    sleep(5)
    used = (process_time() - before) / (monotonic() - since)
    for pool in pools:
        pool.close()
    return 1000 * used


def checkouts(conninfo: str) -> dict[str, float]:
    """Median microseconds of a checkout and return, in turns."""
    pools = {"psycopg_pool": theirs, "ours": ours}
    made = {name: make(conninfo, min_size=20, max_size=30) for name, make in pools.items()}
    took: dict[str, list[float]] = {name: [] for name in pools}
    for pool in made.values():
        pool.wait(60)
    for _ in range(TURNS):
        for name, pool in made.items():
            getconn, putconn = pool.getconn, pool.putconn
            began = perf_counter()
            for _ in range(CHECKOUTS):
                putconn(getconn())
            took[name].append((perf_counter() - began) / CHECKOUTS * 1e6)
    for pool in made.values():
        pool.close()
    return {name: statistics.median(each) for name, each in took.items()}


def main() -> None:
    logging.disable()  # psycopg_pool logs each checkout
    with Server(settings={"max_connections": "550"}) as server:
        conninfo = server.conninfo
        took = checkouts(conninfo)
        ratio = took["ours"] / took["psycopg_pool"]
        print(
            f"checkout + return: psycopg_pool {took['psycopg_pool']:.2f} µs,"
            f" ours {took['ours']:.2f} µs, {ratio:.2f} ×"  # noqa: RUF001
        )
        for name, make in (("psycopg_pool", theirs), ("ours", ours)):
            print(f"{POOLS} pools at rest: {name} {rest(make, conninfo):.2f} ms/s")
        for limit in (30,) if "--quick" in sys.argv else (30, 500):
            for name, make in (("psycopg_pool", theirs), ("ours", ours)):
                late, used = crowd(make, conninfo, limit)
                print(
                    f"{WAITERS} waiters on {limit}: {name} last error {late:.2f} s late,"
                    f" {100 * used:.1f} % of a core"
                )


if __name__ == "__main__":
    main()
