"""One page for all processes of a machine: a private file each, written while somebody looks."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from django.test import Client

from abs_orm_app.integrations.admin_page import neighbours
from tests.support.databases import pool_of
from tests.support.pages import SMALL, content
from tests.support.projects import database, entry
from tests.support.servers import Server

pytestmark = pytest.mark.usefixtures("unblocked")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(neighbours, "_written_at", 0.0)
    return neighbours._path()


def another(home: Path, pid: int, **values: object) -> Path:
    row = {"pid": pid, "alias": "other", "in_use": 5, "limit": 6, "waiting": 3, "failed": 2,
           "trouble": "the pool is exhausted", "longest": "GET /txn/, 12.0 s"}  # fmt: skip
    file = home / f"{pid}.json"
    file.write_text(json.dumps([row | values]))
    return file


@pytest.mark.usefixtures("each_view_asks")
def test_the_page_has_a_row_for_each_process(staff: Client, server: Server, home: Path) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        pool_of(alias)
        assert "All processes of this machine" not in content(staff), "there is one"
        another(home, os.getppid())
        html = content(staff)
    assert f'id="row-{os.getpid()}-other"' in html
    assert f'id="row-{os.getppid()}-other"' in html
    assert "GET /txn/, 12.0 s" in html
    assert "5 of 6" in html


def test_a_process_writes_only_while_somebody_looks(server: Server, home: Path) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        pool_of(alias)
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


@pytest.mark.parametrize("text", ["", "nonsense", "[1]", '[{"pid": 1}]', "{}", '"x"'])
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


def test_a_file_that_cannot_be_written_costs_the_row_and_nothing_else(home: Path) -> None:
    neighbours.rows()
    mine = home / f"{os.getpid()}.json"
    mine.unlink()
    (home / f"{os.getpid()}.part").mkdir()
    assert neighbours.rows() == []
    assert not mine.exists()
