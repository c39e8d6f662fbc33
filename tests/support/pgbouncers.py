"""A real PgBouncer in front of a test's server.

@needs_pgbouncer
def test_something(server):
    with PgBouncer(server, pool_mode="transaction", default_pool_size=2) as pooler:
        psycopg.connect(pooler.conninfo)
        pooler.restart()
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.support.servers import DEADLINE, Server, wait_until
from tests.support.system import needs

# Debian installs it outside of an ordinary user's PATH.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

needs_pgbouncer = needs("pgbouncer", found=PROGRAM)


class PgBouncer:
    """A PgBouncer on a Unix socket in the directory of its server's socket.

    ini: a complete configuration to use; PgBouncer then runs as the account of the tests.
    settings: settings of PgBouncer, which win over the defaults here.
    """

    def __init__(self, server: Server, *, ini: str | None = None, **settings: Any) -> None:
        self.directory = server.socket_dir
        # Only the server has a socket in this directory, under its own port.
        self.port = int(settings.setdefault("listen_port", 6432))
        # It refuses to run as root, so it runs as the owner of the directory, the server's account.
        self._account: dict[str, Any] = {}
        if ini is None and os.geteuid() == 0:
            owner = self.directory.stat()
            self._account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        self._ini = self._written(server, settings) if ini is None else ini
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._file.write_text(self._ini)
        self._file.chmod(0o644)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # Addresses

    @property
    def conninfo(self) -> str:
        """libpq connection string."""
        return f"host={self.directory} port={self.port} user=postgres dbname=postgres"

    @property
    def url(self) -> str:
        """DATABASE_URL."""
        host = str(self.directory).replace("/", "%2F")
        return f"postgresql://postgres@{host}:{self.port}/postgres"

    @property
    def log(self) -> str:
        """Its log since the last start."""
        return self._file.with_suffix(".log").read_text()

    @property
    def _file(self) -> Path:
        return self.directory / "pgbouncer.ini"

    # Life

    def start(self) -> None:
        """Start, and return when it accepts connections."""
        assert PROGRAM is not None, "PgBouncer is not installed: apt-get install pgbouncer"
        assert self._process is None, "PgBouncer is running"
        with self._file.with_suffix(".log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, self._file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # so that Ctrl-C ends only the tests
                **self._account,
            )
        wait_until(self._is_up, "PgBouncer to be ready")

    def stop(self) -> None:
        """Drop every connection and end, as at a restart of its service."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(DEADLINE)
        self._process = None

    def restart(self) -> None:
        """Stop and start, on the same port."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    def command(self, command: str) -> None:
        """Run `PAUSE`, `RESUME` ... on the admin console."""
        with psycopg.connect(self.conninfo, dbname="pgbouncer", autocommit=True) as console:
            console.execute(command)

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PgBouncer did not start:\n{self.log[-2000:]}")
        return "process up:" in self.log

    @staticmethod
    def _written(server: Server, settings: Mapping[str, Any]) -> str:
        options = {
            "unix_socket_dir": server.socket_dir,
            "auth_type": "any",
            "admin_users": "postgres",
            "pool_mode": "transaction",
            "server_login_retry": "0.2",
            **settings,
        }
        return "\n".join(
            (
                "[databases]",
                f"* = host={server.socket_dir} port={server.port} user=postgres",
                "[pgbouncer]",
                *(f"{name} = {value}" for name, value in options.items()),
                "",
            )
        )
