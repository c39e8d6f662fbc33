"""One page for all processes of a machine: a private file each, written while somebody looks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from django.db import connections
from django.test import Client, override_settings

from abs_orm_app.integrations.admin_page import history, neighbours
from abs_orm_app.integrations.admin_page.live import from_json, live, to_json
from abs_orm_app.pool import HardenedPool
from abs_project.demo import PAGE
from tests.support.databases import ask, pool_of
from tests.support.pages import SMALL, content, now
from tests.support.projects import database, entry
from tests.support.servers import Server

pytestmark = pytest.mark.usefixtures("unblocked")


@pytest.fixture(autouse=True)
def home(no_process_of_another_test: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(neighbours, "_written_at", 0.0)
    return neighbours._path()


def another(home: Path, pid: int, **values: object) -> Path:
    row = {"pid": pid, "alias": "other", "in_use": 5, "limit": 6, "waiting": 3, "failed": 2,
           "trouble": "the pool is exhausted", "longest": "GET /txn/, 12.0 s"}  # fmt: skip
    file = home / f"{pid}.json"
    file.write_text(json.dumps({"rows": [row | values]}))
    return file


@pytest.mark.usefixtures("each_view_asks")
@override_settings(USE_THOUSAND_SEPARATOR=True)
def test_the_page_has_a_row_for_each_process(
    staff: Client, server: Server, pool: HardenedPool
) -> None:
    assert "All processes on this machine" not in content(staff), "there is one"
    another(neighbours._path(), os.getppid())  # it depends on the settings
    html = content(staff)
    assert f'id="row-{os.getpid()}-other"' in html
    assert f'id="row-{os.getppid()}-other"' in html
    assert "GET /txn/, 12.0 s" in html
    assert "5 of 6" in html
    parent = os.getppid()
    said = f"other: the pool is exhausted, in process {parent}: 3 requests waiting; one is held by"
    assert f"{said} GET /txn/, 12.0 s." in now(html)
    another(
        neighbours._path(), parent, trouble="the server is a standby, so writes fail", waiting=0
    )
    assert f"other: the server is a standby, so writes fail, in process {parent}." in now(
        content(staff)
    )


def test_a_process_writes_only_while_somebody_looks(pool: HardenedPool, home: Path) -> None:
    neighbours.tell()
    assert not home.exists()
    neighbours.rows()
    mine = home / f"{os.getpid()}.json"
    assert stat_mode(home) == 0o700
    assert stat_mode(mine) == 0o600
    mine.unlink()
    neighbours._written_at = 0.0
    neighbours.tell()
    assert mine.exists()
    mine.unlink()
    long_ago = time.time() - neighbours.AWAKE - 1
    os.utime(home / neighbours.LOOKED_AT, (long_ago, long_ago))
    neighbours._written_at = 0.0
    neighbours.tell()
    assert not mine.exists()


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_dead_process_is_not_shown_and_its_file_is_removed(home: Path) -> None:
    neighbours.rows()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    dead, stale = another(home, gone.pid), another(home, os.getppid())
    long_ago = time.time() - neighbours.STALE - 1
    os.utime(stale, (long_ago, long_ago))
    assert [row.pid for row in neighbours.rows() if row.pid != os.getpid()] == []
    assert not dead.exists()
    assert not stale.exists()


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[1]", "{}", '"x"', '{"rows": [{"pid": 1}]}', '{"rows": 1}']
)
def test_a_file_that_cannot_be_read_is_left_out(home: Path, text: str) -> None:
    neighbours.rows()
    another(home, os.getppid()).write_text(text)
    assert [row.pid for row in neighbours.rows() if row.pid != os.getpid()] == []


def test_a_directory_that_others_can_use_is_not_used(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    assert neighbours.rows() == []
    home.rmdir()
    (tmp_path / "elsewhere").mkdir(0o700)
    home.symlink_to(tmp_path / "elsewhere")
    assert neighbours.rows() == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


@override_settings(SECRET_KEY="")
def test_without_a_secret_key_no_other_process_is_seen() -> None:
    assert neighbours.trouble_of("other") == ""
    assert neighbours.rows() == []


def test_a_file_that_cannot_be_written_costs_the_row_and_nothing_else(home: Path) -> None:
    neighbours.rows()
    mine = home / f"{os.getpid()}.json"
    mine.unlink()
    (home / f"{os.getpid()}-{threading.get_ident()}.part").mkdir()
    assert neighbours.rows() == []
    assert not mine.exists()


def test_another_process_is_told_all_that_the_page_shows(server: Server) -> None:
    given = entry(server.conninfo, OPTIONS=SMALL, ABS_ORM_APP={"leak_seconds": 60.0})
    with database(given) as alias:
        pool = pool_of(alias)
        history.look(pool)
        ask(connections[alias], "SET app.tenant = 'x'")
        history.look(pool)
        told = live(alias)
        assert told
        assert told.holders
        assert len(told.past.seconds) >= 2
        assert from_json(json.loads(json.dumps(told, default=to_json))) == told
        connections[alias].close()


def test_what_is_pinned_is_told_and_no_longer_than_somebody_looks(home: Path) -> None:
    neighbours.rows()
    mine = home / f"{os.getpid()}.json"
    assert "pools" not in json.loads(mine.read_text())
    assert neighbours.pinned(os.getppid()) is None, "it writes nothing"
    asked = home / f"{os.getppid()}.asked"
    assert asked.exists()
    asked.rename(home / f"{os.getpid()}.asked")
    neighbours.write(home)
    assert json.loads(mine.read_text())["pools"] == {}
    assert neighbours.pinned(os.getpid()) == {}
    long_ago = time.time() - neighbours.AWAKE - 1
    os.utime(home / f"{os.getpid()}.asked", (long_ago, long_ago))
    neighbours.rows()
    assert "pools" not in json.loads(mine.read_text())


WRONG = "?process= takes the number of a process. The process that answered is shown."


@pytest.mark.usefixtures("each_view_asks")
@pytest.mark.parametrize(
    "given", ["", "x", "-1", "1.5", "1e3", "0x10", "1_0", " 1", "\u0663", "9" * 5000, "<b>", "1\0"]
)
def test_what_is_no_number_of_a_process_is_one_sentence(staff: Client, given: str) -> None:
    html = content(staff, f"{PAGE}?{urlencode({'process': given})}")
    assert problem(html) == WRONG
    assert f"Answered by process <code>{socket.gethostname()}:{os.getpid()}</code>" in html


@pytest.mark.usefixtures("each_view_asks")
def test_a_process_that_is_gone_or_tells_nothing_is_said_to(
    staff: Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "ANSWER_WITHIN", 0.1)
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    for pid, said in {
        gone.pid: "is gone",
        999_999_999: "is gone",
        0: "is gone",
        os.getppid(): "does not report its pools",
    }.items():
        expected = f"Process {pid} {said}. The process that answered is shown."
        assert problem(content(staff, f"{PAGE}?process={pid}")) == expected
    assert [file.name for file in home.glob("*.asked")] == [f"{os.getppid()}.asked"]
    assert problem(content(staff, f"{PAGE}?process={os.getpid()}")) == ""


def problem(html: str) -> str:
    found = re.search(r'<p class="errornote">(.*?)</p>', html)
    return found[1] if found else ""
