"""Channels runs queries of consumers in threads, by database_sync_to_async."""

from __future__ import annotations

import asyncio
from typing import Any


from tests.compat.case import Case

CONSUMERS = 40


async def talk_to_consumers() -> None:
    from channels.db import database_sync_to_async
    from channels.generic.websocket import AsyncWebsocketConsumer

    # Not that of channels.testing, which keeps connections from being returned.
    from asgiref.testing import ApplicationCommunicator
    from django.contrib.auth.models import Group

    class Counting(AsyncWebsocketConsumer):
        async def receive(self, text_data: str = "", bytes_data: bytes | None = None) -> None:
            count = await database_sync_to_async(Group.objects.count)()
            await self.send(f"{count}")

    async def talk() -> list[Any]:
        communicator = ApplicationCommunicator(Counting.as_asgi(), {"type": "websocket"})
        await communicator.send_input({"type": "websocket.connect"})
        await communicator.receive_output(timeout=20)
        answers = []
        for _ in range(3):
            await communicator.send_input({"type": "websocket.receive", "text": "how many?"})
            answers.append((await communicator.receive_output(timeout=20))["text"])
        await communicator.send_input({"type": "websocket.disconnect", "code": 1000})
        await communicator.wait()
        return answers

    answers = await asyncio.gather(*(talk() for _ in range(CONSUMERS)))
    assert answers == [["0"] * 3] * CONSUMERS


def check() -> None:
    asyncio.run(talk_to_consumers())


CASE = Case(
    packages=["channels"],
    apps=["channels"],
    tried="40 consumers query at the same time on 4 connections",
    note="Query in `database_sync_to_async`: it returns the connection, `sync_to_async` does not.",
    check=check,
)
