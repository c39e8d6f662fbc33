"""django-async-backend, whose native async ORM shares the pool of the alias: experimental."""

from __future__ import annotations

import asyncio
import gc
import random

from tests.compat.case import LIMIT, Case


async def count_items() -> int:
    from django_async_backend.db import async_connections

    async with await async_connections["default"].cursor() as cursor:
        await cursor.execute("SELECT count(*) FROM pg_sleep(0.002)")
        row: tuple[int] = await cursor.fetchone()
        return row[0]


async def one_request() -> int:
    from django_async_backend.db import close_old_async_connections

    try:
        return await count_items()
    finally:
        await close_old_async_connections()


async def use() -> None:
    from django.db import connection

    left = await asyncio.gather(*(count_items() for _ in range(LIMIT)), return_exceptions=True)
    assert left == [1] * LIMIT  # and none of them has closed its connection
    gc.collect()
    tasks = [asyncio.create_task(one_request()) for _ in range(500)]
    chance = random.Random(1)  # noqa: S311
    for task in tasks:
        if chance.random() < 0.7:
            asyncio.get_running_loop().call_later(chance.random(), task.cancel)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    others = [each for each in answers if not isinstance(each, asyncio.CancelledError)]
    assert others.count(1) == len(others) >= 100, others
    pool = connection.pool  # type: ignore[attr-defined]
    assert pool.get_stats()["pool_size"] <= LIMIT


def check() -> None:
    asyncio.run(use())


CASE = Case(
    packages=["django-async-backend"],
    apps=["django_async_backend"],
    tried="tasks that never close their connection, then 500 of which 70 % are cancelled",
    note="Experimental: [async code](async.md#django-async-backend).",
    check=check,
    django=(6, 1),
)
