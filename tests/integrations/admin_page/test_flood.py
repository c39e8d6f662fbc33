"""A flood of made-up sessions on the live page of a real web server."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from secrets import token_hex
from time import monotonic

import pytest

from tests.support.processes import GUNICORN, OF_CLIENTS, Web, backends, program, web_server
from tests.support.servers import Server

pytestmark = pytest.mark.server({"max_connections": "60"})
PAGE = "/admin/abs_orm_app/pools/"
SECONDS = 4.0
RATE = 5  # lookups a second, and at once, that access.py allows
PIDS = f"select pid from pg_stat_activity {OF_CLIENTS}"
SITE = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0"}


async def flood(web: Web, visitors: int, cookies: bool) -> Counter[str]:
    """Status lines of the answers to visitors who come again and again."""
    found: Counter[str] = Counter()
    until = monotonic() + SECONDS

    async def visit() -> None:
        while monotonic() < until:
            cookie = f"Cookie: sessionid={token_hex(16)}\r\n" if cookies else ""
            for path in (PAGE, f"{PAGE}guide/checks/"):
                reader, writer = await asyncio.open_unix_connection(web.socket)
                writer.write(
                    f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{cookie}"
                    "Connection: close\r\n\r\n".encode()
                )
                answer = await reader.read()
                writer.close()
                found[answer.split(b" ")[1].decode()] += 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(visit() for _ in range(visitors)))
    return found


class Sessions(threading.Thread):
    """Counts the sessions that begin on the server: how many at once, and how many in all."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.ended = server, threading.Event()
        self.most, self.seen, self.before = 0, set[int](), backends(server)

    def run(self) -> None:
        with self.server.admin() as admin:
            while not self.ended.wait(0.002):
                pids = {row[0] for row in admin.execute(PIDS).fetchall()} - self.before
                self.most = max(self.most, len(pids))
                self.seen |= pids


@pytest.mark.parametrize("cookies", [True, False], ids=["made-up sessions", "no session"])
def test_a_flood_opens_one_connection_at_a_time_in_each_process(
    server: Server, cookies: bool
) -> None:
    with program((sys.executable, "manage.py", "migrate", "-v0"), server) as migrating:
        assert migrating.wait().status == 0
    with web_server(
        GUNICORN, server, "--worker-class=gthread", "--threads=16", "--workers=2", **SITE
    ) as web:
        sessions = Sessions(server)
        sessions.start()
        began = monotonic()
        answers = asyncio.run(flood(web, 30, cookies))
        seconds = monotonic() - began
        sessions.ended.set()
        sessions.join(30)
    assert answers.total() > 100
    if not cookies:
        assert answers.keys() == {"302"}
        assert sessions.seen == set()
        return
    assert answers.keys() <= {"302", "503"}
    assert answers["503"] > answers["302"]
    # One at a time in each process; the server takes a moment to end what its client has closed.
    assert sessions.most <= 2 * RATE
    assert len(sessions.seen) <= 2 * (RATE + RATE * seconds + 1)
