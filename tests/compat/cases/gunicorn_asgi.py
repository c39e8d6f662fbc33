"""gunicorn's asgi worker runs each request in a thread of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection

from django.db import connection

from tests.compat.case import Case
from tests.support.ports import reserved_port

REQUESTS = 104
SESSIONS = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"


def sessions() -> int:
    with connection.cursor() as cursor:
        cursor.execute(SESSIONS)
        return int(cursor.fetchone()[0])


def check() -> None:
    command = [sys.executable, "-m", "gunicorn", "--worker-class=asgi", "--no-control-socket"]
    with reserved_port() as port:
        server = subprocess.Popen(
            [*command, f"--bind=127.0.0.1:{port}", "django.core.asgi:get_asgi_application()"],
            env={**os.environ, "COMPAT_CASE": "gunicorn_asgi"},
        )

        def status(_: int) -> int:
            client = HTTPConnection("127.0.0.1", port, timeout=30)
            client.request("GET", "/")
            return client.getresponse().status

        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                with suppress(OSError):
                    if status(0) == 200:
                        break
                time.sleep(0.1)
            before = sessions()
            with ThreadPoolExecutor(8) as executor:
                assert set(executor.map(status, range(REQUESTS))) == {200}
        finally:
            server.terminate()
            server.wait(30)
    assert sessions() - before <= 10


CASE = Case(
    packages=["gunicorn"],
    tried="104 requests by 8 clients to `-k asgi` open at most 10 connections",
    check=check,
)
