"""FastAPI's endpoints use the ORM in threads that no request of Django's ends."""

from __future__ import annotations

import asyncio

from tests.compat.case import Case, get_all


async def serve() -> None:
    from django.contrib.auth.models import Group
    from django.core.asgi import get_asgi_application
    from fastapi import FastAPI

    app = FastAPI()
    app.get("/thread")(Group.objects.count)
    app.get("/task")(Group.objects.acount)
    app.mount("/django", get_asgi_application())
    await get_all(app, ["/thread", "/task", "/django/"] * 40)


CASE = Case(
    packages=["fastapi", "httpx"],
    tried="120 requests to endpoints in threads and tasks, and to a mounted Django",
    check=lambda: asyncio.run(serve()),
)
