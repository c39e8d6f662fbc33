"""Two servers with streaming replication, for tests of failover.

    with Server() as first, Standby(first) as second:
        first.stop()
        second.promote()
        follow(first, second)  # the old primary comes back as a standby

The wheel's PostgreSQL has `pg_basebackup` and the WAL receiver; a standby is up in 0.2 s.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.servers import Server, wait_until


class Standby(Server):
    """A streaming standby of `primary`, made with pg_basebackup; read-only until `promote`."""

    def __init__(self, primary: Server, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings)
        self._primary = primary

    def promote(self) -> None:
        """Return when the server accepts writes."""
        with self.admin() as admin:
            row = admin.execute("SELECT pg_promote(true, 20)").fetchone()
        assert row is not None
        assert row[0], "the standby was not promoted"

    def _make_cluster(self) -> None:
        self._programs.run(
            "pg_basebackup",
            "--pgdata=data",
            f"--host={self._primary.socket_dir}",
            f"--port={self._primary.port}",
            "--username=postgres",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
            cwd=self.data.parent,
        )


def commit_on_both(primary: Server) -> None:
    """From now on, a commit is acknowledged only when a standby has it too."""
    with primary.admin() as admin:
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        admin.execute("SELECT pg_reload_conf()")

        def is_in_force() -> bool:
            row = admin.execute("SELECT sync_state FROM pg_stat_replication").fetchone()
            return row is not None and row[0] == "sync"

        wait_until(is_in_force, "the standby to be synchronous")


def follow(former: Server, primary: Server) -> None:
    """Start a stopped former primary as a standby of the new one.

    It must have been stopped in mode `fast`: then the new primary has all that it had.
    """
    conninfo = f"host={primary.socket_dir} port={primary.port} user=postgres"
    (former.data / "standby.signal").touch()
    former.settings["primary_conninfo"] = conninfo
    former.start()
