"""While nobody asks, the pool notices what happens to its idle connections."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.pools import APP, LATE, AnyPool, give_back, opened, ours
from tests.support.servers import Server, wait_until

SIZE = 4
ROLE = "sleeper"
NOTICED = 15.0  # seconds until the pool knows what the server has done


def sessions(server: Server) -> dict[int, float]:
    """The pool's sessions by their backend's pid: how many seconds old they are."""
    with server.admin() as admin:
        rows: list[Any] = admin.execute(
            "SELECT pid, extract(epoch FROM clock_timestamp() - backend_start)::float8"
            " FROM pg_stat_activity WHERE application_name = %s", [APP],
        ).fetchall()  # fmt: skip
    return dict(rows)


def burst(pool: AnyPool) -> None:
    conns = [pool.getconn() for _ in range(SIZE)]
    give_back(pool, conns)


@pytest.mark.server(roles=[f"{ROLE} LOGIN"])
def test_sessions_that_the_server_has_ended_are_replaced_before_the_next_burst(
    server: Server,
) -> None:
    with server.admin() as admin:
        admin.execute(f"ALTER ROLE {ROLE} SET idle_session_timeout = '500ms'")
        with opened(ours, f"{server.conninfo} user={ROLE}", min_size=SIZE, timeout=20) as pool:
            admin.execute(f"ALTER ROLE {ROLE} RESET idle_session_timeout")  # for new sessions
            old = set(sessions(server))
            wait_until(lambda: not old & set(sessions(server)), "the server to end them")
            wait_until(
                lambda: len(sessions(server)) == SIZE == pool.get_stats()["pool_available"],
                "the pool to be full again", NOTICED + LATE,
            )  # fmt: skip
            queued = pool.get_stats().get("requests_queued", 0)
            burst(pool)
            stats = pool.get_stats()
            assert stats.get("requests_queued", 0) == queued
            assert stats["connections_stale"] >= SIZE


def test_connections_to_a_server_that_has_stopped_are_not_reported_as_idle(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=SIZE, timeout=20) as pool:
        assert pool.get_stats()["pool_available"] == SIZE
        server.stop()
        wait_until(
            lambda: pool.get_stats()["pool_available"] == 0 == len(pool.idle),
            "the pool to notice", NOTICED + LATE,
        )  # fmt: skip
        server.start()


def test_expired_connections_are_replaced_while_it_is_quiet(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=SIZE, max_lifetime=1.0, timeout=20):
        old = set(sessions(shared))
        assert len(old) == SIZE

        def are_replaced() -> bool:
            now = set(sessions(shared))
            return not old & now and len(now) == SIZE

        wait_until(are_replaced, "expired ones to be replaced", 1.0 + NOTICED + LATE)
