"""a2wsgi and starlette put Django's WSGI application into an ASGI one."""

from __future__ import annotations

import asyncio
import warnings

from django.db import connection

from tests.compat.case import Case, get_all


async def serve() -> None:
    from a2wsgi import WSGIMiddleware
    from django.core.wsgi import get_wsgi_application
    from starlette.applications import Starlette
    from starlette.middleware.wsgi import WSGIMiddleware as Unending

    app = Starlette()
    app.mount("/a2wsgi", WSGIMiddleware(get_wsgi_application()))
    app.mount("/starlette", Unending(get_wsgi_application()))
    for path in ("/a2wsgi/", "/starlette/"):
        await get_all(app, [path] * 100)
        assert connection.pool.holders() == []


def check() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # of starlette's
    asyncio.run(serve())


CASE = Case(
    packages=["a2wsgi", "starlette", "httpx"],
    tried="100 requests at the same time to each; nothing is in use afterwards",
    note="Mount Django with it: [Starlette's own](#uvicorn) does not end requests.",
    check=check,
)
