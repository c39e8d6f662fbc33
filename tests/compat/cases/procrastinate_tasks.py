"""procrastinate's worker connects by itself, with the engine's parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any


from tests.compat.case import Case

TASKS = 40
asked: list[Mapping[str, Any]] = []


def provide(params: Mapping[str, Any]) -> str:
    asked.append(params)
    return "a password of this moment"


def check() -> None:
    from django.contrib.auth.models import Group

    from procrastinate.contrib.django import app

    @app.task(name="make")
    def make(number: int) -> None:
        Group.objects.create(name=str(number))

    for number in range(TASKS):
        make.defer(number=number)

    async def work() -> None:
        with_connector = app.with_connector(app.connector.get_worker_connector())
        async with with_connector.open_async():
            await with_connector.run_worker_async(wait=False, install_signal_handlers=False)

    before = len(asked)
    asyncio.run(work())
    assert Group.objects.count() == TASKS
    assert len(asked) > before


CASE = Case(
    packages=["procrastinate[django]"],
    apps=["procrastinate.contrib.django"],
    variables={"DB_PASSWORD_PROVIDER": f"{__name__}.provide"},
    tried="40 tasks deferred and done, with a `DB_PASSWORD_PROVIDER`",
    check=check,
)
