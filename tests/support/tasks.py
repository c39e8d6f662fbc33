"""Async tasks that have a connection of a pool, beside the test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from abs_orm_app import aio
from tests.support.pools import Call
from tests.support.servers import wait_until

STREAM = f"{__name__}.stream"  # the task's name in reports


async def stream(alias: str, statement: str, over: asyncio.Event) -> None:
    async with aio.connection(alias) as conn:
        await conn.execute(statement)
        await over.wait()


@contextmanager
def held_by_tasks(alias: str, *statements: str, waiting: int = 0) -> Iterator[None]:
    """A task for each statement executes it and keeps its connection until the end of the block.

    `waiting`: so many more wait for a connection.
    """
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def all_of_them() -> None:
        tasks.extend(asyncio.create_task(stream(alias, each, over)) for each in statements)
        await asyncio.sleep(0.1)
        tasks.extend(asyncio.create_task(stream(alias, "SELECT 1", over)) for _ in range(waiting))
        await asyncio.gather(*tasks)

    call = Call(loop.run_until_complete, all_of_them())
    pool: Any = connections[alias].pool  # type: ignore[attr-defined]
    try:
        wait_until(
            lambda: (
                len(tasks) == len(statements) + waiting
                and (len(pool.in_use), len(pool.queue.waiters)) == (len(statements), waiting)
            ),
            "the tasks to have their connections",
        )
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        call.result(within=20)
        loop.close()
