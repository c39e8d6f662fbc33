"""What it costs a checkout to find the project's own line: `python -m benchmarks.stack_cost`.

Measured where the engine takes a connection in a request of the sample project: for a query of its
own cursor, and for one of the ORM. DB_POOL_LEAK_SECONDS has the whole stack recorded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from types import CodeType
from typing import Any

from tests.support.servers import Server

REQUESTS = 200
LOOKS = 50  # at the same stack
TO_REACH = 1.0  # microseconds, to look at each checkout

urlpatterns: list[Any] = []
looks: dict[str, list[float]] = {"the project's own line": [], "the whole stack": []}


def main() -> None:
    with Server() as server:
        os.environ |= {
            "DATABASE_URL": server.url,
            "DB_POOL_MODE": "pool",
            "DJANGO_SETTINGS_MODULE": "abs_project.settings",
        }
        import django

        django.setup()
        print("| at a checkout, for a query | " + " | ".join(looks) + " |\n|---|---|---|")
        for name, view in (("of a cursor", _cursor), ("of the ORM", _orm)):
            _measure(view)
            times = [f"{median(each) * 1e6:.1f} µs" for each in looks.values()]
            print(f"| {name} | {' | '.join(times)} |")
    print(f"\nThe line would be recorded always if that took {TO_REACH:g} µs at most.")


def _cursor() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _orm() -> None:
    from django.contrib.contenttypes.models import ContentType

    assert not list(ContentType.objects.filter(model="none"))


def _measure(use: Callable[[], None]) -> None:
    """Serve requests whose view does this; each looks at the stack when it takes a connection."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command
    from django.db import connection
    from django.http import HttpResponse
    from django.test import RequestFactory, override_settings
    from django.urls import path

    from abs_orm_app.pool.holders import _plumbing, frames_of_caller

    def view(_: object) -> HttpResponse:
        use()
        return HttpResponse()

    urlpatterns[:] = [path("", view)]
    call_command("migrate", "contenttypes", verbosity=0)
    connection.close()
    plumbing = _plumbing()

    def own_line() -> tuple[CodeType, int]:
        frame: Any = sys._getframe(2)  # the engine, which takes the connection
        while frame.f_code.co_filename.startswith(plumbing):
            frame = frame.f_back
        return frame.f_code, frame.f_lasti

    pool: Any = connection.pool  # type: ignore[attr-defined]
    take = pool.getconn

    def getconn(*given: Any) -> Any:
        for look, times in zip((own_line, frames_of_caller), looks.values(), strict=True):
            began = perf_counter()
            for _ in range(LOOKS):
                look()
            times.append((perf_counter() - began) / LOOKS)
        return take(*given)

    handler: Any = WSGIHandler()
    environ = RequestFactory(SERVER_NAME="localhost").get("/").environ
    for times in looks.values():
        times.clear()
    with override_settings(ROOT_URLCONF=__name__):
        pool.getconn = getconn
        for _ in range(REQUESTS):
            handler(environ.copy(), lambda *_: None).close()
        del pool.getconn
    assert all(len(times) == REQUESTS for times in looks.values())


if __name__ == "__main__":
    main()
