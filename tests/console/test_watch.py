"""`check_pool --watch`, on a pseudo-terminal of 80 x 24, and without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from contextlib import ExitStack
from datetime import datetime
from io import StringIO
from threading import Event
from time import monotonic
from typing import Any

import psycopg
import pyte
import pytest
from django.core.management import CommandError, call_command
from rich.console import Console

from abs_orm_app import console
from abs_orm_app.console.watch import Look, Watched, watch
from abs_orm_app.console.watch_picture import FINE, PLAIN, Signs, picture
from abs_orm_app.console.watch_view import live
from abs_orm_app.facts.databases import configured
from abs_orm_app.facts.sessions import Blocked, Fleet, Group, Session, read_fleet
from tests.support.facts import server_facts
from tests.support.pools import Call
from tests.support.projects import ROOT, SQLITE, database, entry, manage
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server({"max_connections": "20"}, sql=["CREATE TABLE t (id int)"])

COLUMNS, LINES = 80, 24
DEADLINE = 20.0  # seconds


def named(server: Server, name: str) -> psycopg.Connection:
    return psycopg.connect(server.conninfo, application_name=name)


class Terminal:
    """check_pool --watch on a pseudo-terminal, and the screen of that terminal."""

    def __init__(self, server: Server, *arguments: str, **environ: str) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DB_", "COLUMNS"))}
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "check_pool", "--watch", "0.2", *arguments],
            cwd=ROOT,
            env={**inherited, "DATABASE_URL": server.url, "TERM": "xterm-256color", **environ},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        os.close(self._master)
        os.close(self.slave)

    @property
    def text(self) -> str:
        """The text on the screen now."""
        while select.select([self._master], [], [], 0.05)[0]:
            piece = os.read(self._master, 65536)
            self.raw += piece
            self._stream.feed(piece)
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait_for(self, *words: str, lines: tuple[str, ...] = ()) -> None:
        """Wait until the words are on the screen, and lines that match these patterns."""

        def shown() -> bool:
            text = self.text
            seen = " ".join(text.split())
            return all(word in seen for word in words) and all(
                re.search(line, text, re.MULTILINE) for line in lines
            )

        wait_until(shown, " and ".join((*words, *lines)))

    def press(self, key: bytes) -> int:
        """Press a key that ends the command, and return the exit code."""
        os.write(self._master, key)
        deadline = monotonic() + DEADLINE
        while self.process.poll() is None and monotonic() < deadline:
            assert self.text is not None  # it can end only while its output is read
        return self.process.wait(1)


# On a terminal


def test_the_fleet_is_shown_and_q_quits(shared: Server) -> None:
    with ExitStack() as held, Terminal(shared) as terminal:
        for name in ("shop@web-1:7", "shop@web-1:8", "shop@web-2:7", "psql"):
            held.enter_context(named(shared, name)).execute("SELECT 1")
        terminal.wait_for(
            *("shop", "web-1", "web-2", "psql", "4 of 20"),
            *("this role may open 20", "q to quit"),
            lines=(r"^shop +web-1 +2 +0 +0 +2 +[\d.]+s +2$",),
        )
        assert terminal.press(b"q") == 0
        assert "Traceback" not in terminal.raw.decode()
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert terminal.raw.rstrip().endswith((b"\x1b[?25h", b"\x1b[?1049l")), "the screen is back"


def test_ctrl_c_quits_quietly(shared: Server) -> None:
    with Terminal(shared) as terminal:
        terminal.wait_for("0 of 20")
        assert terminal.press(b"\x03") == 0
        assert "Traceback" not in terminal.raw.decode()
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_blocked_session_is_shown_with_its_blocker(shared: Server) -> None:
    with (
        named(shared, "migrate@web-1:7") as locker,
        named(shared, "shop@web-2:9") as waiter,
        Terminal(shared) as terminal,
    ):
        pid = locker.info.backend_pid
        locker.execute("LOCK TABLE t")
        waiting = Call(waiter.execute, "SELECT * FROM t")
        terminal.wait_for(
            "1 blocked",
            lines=(
                r"^\d+ shop@web-2 waits for [\d.]+s$",
                rf"^  behind {pid} migrate@web-1, idle in transaction for [\d.]+s$",
            ),
        )
        terminal.press(b"q")
        locker.rollback()
        waiting.result(DEADLINE)


def test_the_view_continues_while_the_database_is_down(server: Server) -> None:
    with Terminal(server) as terminal:
        terminal.wait_for("0 of 20")
        server.stop()
        terminal.wait_for("No answer for", "Below is its last answer.", "0 of 20")
        server.start()
        wait_until(lambda: "No answer" not in terminal.text, "it to notice")
        assert terminal.press(b"q") == 0


def test_a_database_that_hangs_delays_neither_the_view_nor_its_end(server: Server) -> None:
    with Terminal(server) as terminal:
        terminal.wait_for("0 of 20")
        server.suspend()
        terminal.wait_for("no answer within 5 seconds")
        assert terminal.press(b"q") == 0
        server.resume()


def test_a_database_that_is_down_at_the_start_is_tried_again(server: Server) -> None:
    server.stop()
    with Terminal(server) as terminal:
        terminal.wait_for("No answer")
        server.start()
        terminal.wait_for("0 of 20")
        assert terminal.press(b"Q") == 0


def test_the_view_ends_with_the_error_that_ends_its_queries(
    shared: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = 0

    def exhausted(connection: Any) -> Fleet:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise RuntimeError("can't start new thread")
        return read_fleet(connection)

    monkeypatch.setattr("abs_orm_app.console.watch.read_fleet", exhausted)
    with database(entry(shared.conninfo)) as alias:
        viewed = Call(live, configured(alias), 0.01)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            viewed.result(DEADLINE)
    assert capsys.readouterr().out.endswith("\x1b[?25h\x1b[?1049l"), "the screen is back"


# Drawing


def group(number: int, **more: Any) -> Group:
    return Group(
        **{
            "application": f"application-{number}",
            "host": f"host-{number}.some.where.example.com",
            "processes": 4,
            "active": 12,
            "idle": 345,
            "in_transaction": 6,
            "unknown": 0,
            "oldest_active": 59.9,
            "oldest_idle": 86400.0 * 45,
            "oldest_in_transaction": 0.1,
            **more,
        }
    )


def drawn(
    groups: int,
    blocked: int = 0,
    used: int = 50,
    signs: Signs = FINE,
    columns: int = COLUMNS,
    **more: Any,
) -> list[str]:
    session = Session(
        pid=4242424, application="shop" * 9, host="web" * 9, state="idle in transaction", seconds=7
    )
    fleet = Fleet(
        groups=tuple(group(number, **more) for number in range(groups)),
        # PostgreSQL 13 does not know how long.
        blocked=(Blocked(session=session, seconds=None, blockers=(session, session)),) * blocked,
    )
    look = Look(at=datetime(2026, 1, 2, 3, 4, 5), server=server_facts(used=used), fleet=fleet)
    watched = Watched(last=look, shares=(0.1, 0.5, 1.0, 1.5) * 15, failure=None, failing_since=None)
    console = Console(file=StringIO(), width=columns, height=LINES, color_system=None)
    size = (columns, LINES)
    with console.capture() as captured:
        console.print(picture(configured("default"), watched, size, "every 2 s", signs=signs))
    return captured.get().splitlines()


@pytest.mark.parametrize("groups", [0, 1, 10, 500])
@pytest.mark.parametrize("blocked", [0, 1, 40])
def test_the_view_fits_on_80_by_24(groups: int, blocked: int) -> None:
    lines = drawn(groups, blocked)
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("columns", [60, 72, 100])
@pytest.mark.parametrize("blocked", [0, 40])
def test_it_fits_other_widths(columns: int, blocked: int) -> None:
    lines = drawn(500, blocked, columns=columns)
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", [60, 80])
def test_the_title_does_not_touch_the_clock(columns: int) -> None:
    assert re.search(r"\S  03:04:05", drawn(1, columns=columns)[0])


def test_a_hidden_state_is_explained() -> None:
    hidden = "\n".join(drawn(1, unknown=3))
    assert "hidden from this role: needs pg_read_all_stats" in hidden
    assert "pg_read_all_stats" not in "\n".join(drawn(1))


def test_the_way_to_end_a_blocker_is_a_line_to_copy() -> None:
    assert any("SELECT pg_terminate_backend(4242424)" in line for line in drawn(1, 1))
    assert "pg_terminate_backend" not in "\n".join(drawn(1))


def test_what_does_not_fit_is_counted() -> None:
    text = "\n".join(drawn(500, 40))
    assert re.search(r"and \d+ more +\d+", text)
    assert "40 blocked" in text


def test_columns_stay_readable() -> None:
    [line] = [line for line in drawn(1) if line.startswith("application-0")]
    assert re.search(r" 4 +12 +60s +345 +45d +6 0\.1s +363$", line.replace("  ", " "))


def test_a_terminal_that_only_knows_ascii_gets_ascii() -> None:
    assert all(line.isascii() for line in drawn(3, 1, signs=PLAIN))


def test_more_than_the_limit_is_shown_too() -> None:
    assert any("120 of 97" in line and "124%" in line for line in drawn(1, used=120))


# Queries


def test_all_queries_of_the_view_use_one_connection(shared: Server) -> None:
    with database(entry(shared.conninfo)) as alias:
        over = Event()
        looks = watch(configured(alias), 0.0, over)
        for _ in range(5):
            seen = next(looks)
            assert shared.sessions() == 1
        assert seen.last is not None
        assert len(seen.shares) == 5
        over.set()
        assert next(looks, None) is None
    wait_until(lambda: shared.sessions() == 0, "the session to end")


# Without a terminal


def test_without_a_terminal_it_is_one_plain_snapshot(shared: Server) -> None:
    with named(shared, "shop@web-1:7"):
        done = manage("check_pool", "--watch", DATABASE_URL=shared.url, FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "1 of 20" in done.stdout
    assert "shop" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= COLUMNS


def test_an_output_that_is_not_utf_8_gets_only_what_it_can_write(shared: Server) -> None:
    with named(shared, "x" * 60):
        done = manage("check_pool", "--watch", DATABASE_URL=shared.url, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "1 of 20" in done.stdout


def test_a_snapshot_of_a_server_that_is_down_exits_with_1() -> None:
    done = manage("check_pool", "--watch", DATABASE_URL="postgresql://x:s3cret@127.0.0.1:1/x")
    assert done.returncode == 1
    assert "Connection refused" in " ".join(done.stdout.split())
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--watch", "0"), "--watch: '0' is not a number above 0"),
        (("--watch", "--format", "json"), "has no JSON output"),
        *(
            (("--watch", *more), "needs no option but --database")
            for more in (
                ("--drill",),
                ("--yes",),
                ("--compare", "fullon_orm"),
                ("--advise",),
                ("--processes", "2"),
                ("--rps", "5"),
                ("--query-ms", "5"),
                ("--target-wait-ms", "0"),
                ("--fail-level", "ERROR"),
            )
        ),
        (("--yes",), "--yes needs --drill"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        call_command("check_pool", *arguments)


def test_only_one_alias_can_be_watched(shared: Server) -> None:
    with database(entry(shared.conninfo)), pytest.raises(CommandError, match="--watch is for one"):
        call_command("check_pool", "--watch")
    with database(SQLITE) as alias, pytest.raises(CommandError, match="--watch is for PostgreSQL"):
        call_command("check_pool", "--watch", database=[alias])


def test_without_rich_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("watch_view", "watch_picture"):
        monkeypatch.delitem(sys.modules, f"abs_orm_app.console.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delattr(console, "watch_view", raising=False)
    with pytest.raises(CommandError, match=r"pip install 'abs-orm-app\[watch\]'") as raised:
        call_command("check_pool", "--watch")
    assert "\n" not in str(raised.value)
