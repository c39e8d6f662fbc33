"""What the pool counts as a request, and as its timeout."""

from __future__ import annotations

import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.pool import waiting
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.waiting import timeout_error
from tests.support.pools import opened, ours
from tests.support.servers import Server


def test_a_request_that_is_served_at_the_last_moment_is_no_timeout(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        held = pool.getconn()

        def return_first(core: Core, timeout: float) -> PoolTimeout:
            """The deadline is over, and the request has not decided to give up yet."""
            pool.putconn(held)
            return timeout_error(core, timeout)

        monkeypatch.setattr(waiting, "timeout_error", return_first)
        assert pool.getconn(timeout=0.05) is held
        stats = pool.get_stats()
        assert (stats.get("requests_timeouts", 0), stats.get("requests_errors", 0)) == (0, 0)
        pool.putconn(held)


def test_waiting_for_the_pool_to_be_filled_is_no_request() -> None:
    pool = ours("host=127.0.0.1 port=1 user=x dbname=x", min_size=1)
    with pytest.raises(PoolTimeout):
        pool.open(wait=True, timeout=0.1)
    stats = pool.get_stats()
    assert [
        stats.get(key, 0) for key in ("requests_timeouts", "requests_errors", "requests_num")
    ] == [0, 0, 0]
