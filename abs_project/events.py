"""Server-sent events: one connection of the process listens for all its clients."""

import asyncio
from collections.abc import AsyncIterator

from django.http import HttpRequest, StreamingHttpResponse

from abs_orm_app import aio

_clients: set[asyncio.Queue[str | None]] = set()
_listener: asyncio.Task[None] | None = None


async def events(_request: HttpRequest) -> StreamingHttpResponse:
    """What `NOTIFY events, '...'` sends, until the client goes away."""
    return StreamingHttpResponse(_stream(), content_type="text/event-stream")


async def _stream() -> AsyncIterator[str]:
    global _listener
    client: asyncio.Queue[str | None] = asyncio.Queue()
    _clients.add(client)
    if _listener is None or _listener.done():
        _listener = asyncio.create_task(_listen())
    try:
        yield "retry: 1000\n\n"
        while (text := await client.get()) is not None:
            yield f"data: {text}\n\n"
    finally:
        _clients.discard(client)
        if not _clients:
            _listener.cancel()


async def _listen() -> None:
    try:
        async with aio.connection() as conn:
            await conn.execute("LISTEN events")
            async for notification in conn.notifies():
                for client in _clients:
                    client.put_nowait(notification.payload)
    finally:  # the browser connects again, and the next client starts a new listener
        for client in _clients:
            client.put_nowait(None)
