"""What a project that comes from psycopg_pool relies on."""

from __future__ import annotations

from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

from abs_orm_app.pool import HardenedPool
from tests.support.pools import AnyPool, Call, MakePool, opened, ours, stock, use
from tests.support.servers import Server, wait_until


def test_the_class_takes_the_type_of_its_connections() -> None:
    """As in an annotation that is evaluated, or in a subclass."""
    assert HardenedPool[psycopg.Connection[Any]] is not None  # type: ignore[misc]


@pytest.mark.parametrize("make", [ours, stock])
def test_the_class_of_connections_may_have_the_type_of_its_rows(
    server: Server, make: MakePool
) -> None:
    """As in psycopg_pool's documentation."""
    options: dict[str, Any] = {"kwargs": {"row_factory": dict_row}, "min_size": 1}
    options["connection_class"] = psycopg.Connection[DictRow]
    with opened(make, server.conninfo, **options) as pool, pool.connection() as conn:
        assert conn.execute("SELECT 1 AS one").fetchone() == {"one": 1}


@pytest.mark.parametrize("make", [ours, stock])
def test_an_error_of_configure_is_an_operational_error_and_ours_names_it(
    server: Server, make: MakePool
) -> None:
    def configure(_: psycopg.Connection[Any]) -> None:
        raise ValueError("a bug of the project")

    options = {"min_size": 1, "timeout": 2, "configure": configure}
    with (
        opened(make, server.conninfo, filled=False, **options) as pool,
        pytest.raises(psycopg.OperationalError) as caught,
    ):
        Call(use, pool).result(within=20)
    if make is ours:
        assert "a bug of the project" in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)


def test_reconnect_failed_is_called_in_time_though_nobody_waits(server: Server) -> None:
    """Attempts are rare by then; the call must not wait for the next one."""
    called: list[float] = []

    def tell(_: AnyPool) -> None:
        called.append(monotonic())

    options = {"min_size": 2, "reconnect_timeout": 5.0, "reconnect_failed": tell}
    with opened(ours, server.conninfo, **options) as pool:
        use(pool)
        server.stop()
        began = monotonic()
        with pytest.raises(psycopg.OperationalError):  # which shows the pool that it is gone
            use(pool, timeout=0.5)
        wait_until(lambda: bool(called), "reconnect_failed to be called", 40.0)
        assert called[0] - began <= 5.0 + 2.0
