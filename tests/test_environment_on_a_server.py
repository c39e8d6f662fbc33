"""What database_from_env writes works: on a server, and on the embedded one."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler
from pytest_django import DjangoDbBlocker

from abs_orm_app.config.application_name import process_name
from abs_orm_app.embedded import cluster
from abs_orm_app.environment import SettingsError, database_from_env
from tests.support.projects import python
from tests.support.servers import Server

needs_the_wheel = pytest.mark.skipif(
    sys.version_info >= (3, 15), reason="the embedded PostgreSQL has no wheel for Python 3.15 yet"
)


def entry(**variables: str) -> dict[str, Any]:
    return database_from_env(environ={"DJANGO_SETTINGS_MODULE": "shop.settings", **variables})


Connect = Callable[[dict[str, Any]], BaseDatabaseWrapper]


@pytest.fixture
def connect(django_db_blocker: DjangoDbBlocker) -> Iterator[Connect]:
    """Connects to what an entry says, with an engine's wrapper of the test's own."""
    with django_db_blocker.unblock(), ExitStack() as end:

        def connect(database: dict[str, Any]) -> BaseDatabaseWrapper:
            wrapper = ConnectionHandler({"default": database})["default"]
            end.callback(getattr(wrapper, "close_pool", bool))
            end.callback(wrapper.close)
            wrapper.ensure_connection()
            return wrapper

        yield connect


@pytest.mark.parametrize("mode", ["pool", "persistent", "pgbouncer", "null"])
@pytest.mark.parametrize(
    "engine", ["abs_orm_app.backends.postgresql", "django.db.backends.postgresql"]
)
def test_the_entry_works_with_our_engine_and_with_djangos_own(
    server: Server, connect: Connect, mode: str, engine: str
) -> None:
    database = entry(
        DATABASE_URL=f"{server.url}?currentSchema=pg_catalog", DB_POOL_MODE=mode, DB_POOL_SIZE="1"
    )
    with connect({**database, "ENGINE": engine}).cursor() as cursor:
        cursor.execute("select current_setting('application_name'), current_setting('search_path')")
        own = engine.startswith("abs_orm_app") and mode != "pgbouncer"
        name = process_name("shop") if own else "shop"
        assert cursor.fetchone() == (name, "pg_catalog")


@pytest.mark.parametrize("mode", ["pool", "null"])
@pytest.mark.parametrize("given", ["shop", "worker"])
def test_an_application_name_of_the_projects_own_is_left_alone(
    server: Server, connect: Connect, mode: str, given: str
) -> None:
    url = f"{server.url}?application_name={given}"
    database = entry(DATABASE_URL=url, DB_POOL_MODE=mode, DB_POOL_SIZE="1")
    with connect(database).cursor() as cursor:
        cursor.execute("select current_setting('application_name')")
        assert cursor.fetchone() == (given,)


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
@pytest.mark.parametrize("mode", ["null", "pgbouncer"])
@pytest.mark.parametrize(
    ("query", "expected"),
    [("", [10, 3, 3, 18_000]), ("?tcp_user_timeout=0&keepalives_idle=60", [60, 3, 3, 0])],
)
def test_the_kernel_is_told_to_find_a_dead_peer_within_20_seconds_or_as_the_url_says(
    server: Server, connect: Connect, mode: str, query: str, expected: list[int]
) -> None:
    wrapper = connect(entry(DATABASE_URL=server.tcp_url + query, DB_POOL_MODE=mode))
    tcp = socket.socket(fileno=os.dup(wrapper.connection.fileno()))
    with tcp:
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert [
            tcp.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        ] == expected


@needs_the_wheel
def test_an_embedded_server_is_started_in_a_directory_relative_to_the_base(
    home: Path, connect: Connect
) -> None:
    (home / "base").mkdir()
    variables = {"DATABASE_URL": "embedded:///data/pg", "DB_POOL_MODE": "null"}
    try:
        database = database_from_env(base_dir=home / "base", environ=variables)
        assert database["ABS_ORM_APP"]["embedded"] == "data/pg"
        assert connect(database).is_usable()
    finally:
        assert cluster.stop(home / "base/data/pg")


def test_a_wrong_variable_starts_no_server(tmp_path: Path) -> None:
    variables = {"DATABASE_URL": "embedded:///pg", "DB_POOL_SIZE": "x"}
    with pytest.raises(SettingsError):
        database_from_env(base_dir=tmp_path, environ=variables)
    assert not list(tmp_path.iterdir())


@needs_the_wheel
def test_an_embedded_server_that_cannot_start_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("")
    with pytest.raises(SettingsError, match=r"^DATABASE_URL: .* holds other files"):
        database_from_env(
            environ={"DATABASE_URL": f"embedded:///{tmp_path}", "DB_POOL_MODE": "null"}
        )


def test_an_ordinary_url_does_not_import_the_embedded_server() -> None:
    code = (
        "import sys\n"
        "from abs_orm_app.environment import database_from_env\n"
        "database_from_env(environ={'DATABASE_URL': 'postgresql://db.example/shop'})\n"
        "sys.exit('abs_orm_app.embedded' in sys.modules)"
    )
    assert python("-c", code).returncode == 0
