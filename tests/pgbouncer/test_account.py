"""`pgbouncer_ini`, run as root for the account of a PgBouncer, and a PgBouncer as that account."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command

from tests.support.pgbouncer_ini import entry, written
from tests.support.pgbouncers import PROGRAM, needs_pgbouncer
from tests.support.ports import reserved_port
from tests.support.projects import database
from tests.support.servers import DEADLINE, PASSWORD_OVER_TCP, Server, wait_until

SERVICE = "daemon"  # any account that is neither root nor the one that root falls back to

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root writes files for another account"),
    pytest.mark.server(
        hba=PASSWORD_OVER_TCP,
        roles=["app LOGIN PASSWORD 'app pw'", "late LOGIN PASSWORD 'late pw'"],
    ),
]


@pytest.fixture
def directory(home: Path) -> Path:
    """A directory that only the service's account can enter."""
    own = home / "pgbouncer"
    own.mkdir(mode=0o700)
    account = pwd.getpwnam(SERVICE)
    os.chown(own, account.pw_uid, account.pw_gid)
    return own


@contextmanager
def pgbouncer(directory: Path, starter: str) -> Iterator[subprocess.Popen[bytes]]:
    """PgBouncer as an account starts it, in the directory of its files."""
    assert PROGRAM
    account = pwd.getpwnam(starter)
    log = directory.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PROGRAM, "pgbouncer.ini"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            start_new_session=True,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
        )

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        return "process up:" in log.read_text()

    try:
        wait_until(is_up, "PgBouncer to be ready")
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE)


def by_signal(process: subprocess.Popen[bytes], port: int) -> None:
    process.send_signal(signal.SIGHUP)


def by_command(process: subprocess.Popen[bytes], port: int) -> None:
    address = f"host=127.0.0.1 port={port} user=app password='app pw' dbname=pgbouncer"
    with psycopg.connect(address, autocommit=True) as console:
        console.execute("RELOAD")


def can_log_in(port: int, user: str) -> bool:
    address = f"host=127.0.0.1 port={port} user={user} password='{user} pw' dbname=postgres"
    with suppress(psycopg.OperationalError), psycopg.connect(address, connect_timeout=5) as client:
        return client.execute("SELECT current_user").fetchone() == (user,)
    return False


@needs_pgbouncer
@pytest.mark.parametrize("starter", [SERVICE, "root"])
@pytest.mark.parametrize("reload", [by_signal, by_command])
def test_pgbouncer_reads_its_files_at_the_start_and_again(
    server: Server,
    directory: Path,
    starter: str,
    reload: Callable[[subprocess.Popen[bytes], int], None],
) -> None:
    address = f"127.0.0.1:{server.port}/postgres"
    aliases = {"shop": entry(f"postgresql://app:app%20pw@{address}")}
    with reserved_port() as port:
        arguments = ("--listen-port", str(port), "--with-password", "--output", str(directory))
        written(*arguments, **aliases)
        ini = directory / "pgbouncer.ini"
        ini.write_text(f"{ini.read_text()}admin_users = app\n")
        with pgbouncer(directory, starter) as process:
            assert process_owner(process.pid) == SERVICE
            assert can_log_in(port, "app")
            assert not can_log_in(port, "late")
            written(*arguments, **aliases, late=entry(f"postgresql://late:late%20pw@{address}"))
            reload(process, port)
            wait_until(lambda: can_log_in(port, "late"), "the new userlist.txt to be in force")


def process_owner(pid: int) -> str:
    return pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name


def test_the_owner_of_the_directory_counts_more_than_that_of_the_servers_socket(
    server: Server, directory: Path
) -> None:
    text = said_and_written(directory, f"{server.url}")[1]
    assert server.socket_dir.owner() != SERVICE
    assert f"\nuser = {SERVICE}" in text


def test_a_directory_of_roots_is_warned_about(home: Path, directory: Path) -> None:
    """PgBouncer does not run as root, and as another account it cannot read root's files."""
    said, _ = said_and_written(home, "postgresql://app@db.example/shop")
    assert f"Warning: {home} belongs to root" in said
    said, _ = said_and_written(directory, "postgresql://app@db.example/shop")
    assert "belongs to root" not in said


def said_and_written(directory: Path, url: str) -> tuple[str, str]:
    """What the command says on stderr, and the pgbouncer.ini that it writes."""
    errors = StringIO()
    with database(entry(url), "shop"):
        arguments = ("--database", "shop", "--output", str(directory))
        call_command("pgbouncer_ini", *arguments, stdout=StringIO(), stderr=errors)
    return errors.getvalue(), (directory / "pgbouncer.ini").read_text()
