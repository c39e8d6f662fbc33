"""Passwords change while the pool serves, without a restart and without an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections

from tests.support.databases import ALIAS, Database, ask
from tests.support.pools import Call, repeating
from tests.support.servers import PASSWORD_OVER_TCP, Server, wait_until

pytestmark = pytest.mark.server(hba=PASSWORD_OVER_TCP, roles=["app LOGIN"])

asked: list[Mapping[str, Any]] = []
token = {"password": ""}


def provide(params: Mapping[str, Any]) -> str:
    """A provider, like one that asks a cloud for a token."""
    asked.append(params)
    return token["password"]


def fail(_params: Mapping[str, Any]) -> str:
    raise ConnectionError("s3cret token service is away")


@pytest.fixture
def database(shared: Server, django_db_blocker: Any) -> Iterator[Database]:
    change_on_server(shared, "first")
    token["password"] = "first"
    database = Database(shared)
    with django_db_blocker.unblock():
        yield database
        database.remove()


def change_on_server(server: Server, password: str) -> None:
    with server.admin() as admin:
        admin.execute(f"ALTER ROLE app PASSWORD '{password}'")


def app(**extra: Any) -> dict[str, Any]:
    """A DATABASES entry for the role whose password changes; its connections expire after 0.2 s."""
    return {
        "HOST": "127.0.0.1",
        "USER": "app",
        "OPTIONS": {"pool": {"min_size": 2, "max_size": 4, "timeout": 20, "max_lifetime": 0.2}},
        "ABS_ORM_APP": extra,
    }


def wait_for_new_connections() -> None:
    """Wait until the pool has opened as many connections as it can have."""
    pool = connections[ALIAS].pool  # type: ignore[attr-defined]
    before = pool.get_stats().get("connections_num", 0)
    wait_until(lambda: pool.get_stats().get("connections_num", 0) >= before + 4, "new connections")


def query() -> None:
    ask(connections[ALIAS])
    connections[ALIAS].close()


@pytest.mark.parametrize("server_first", [True, False])
def test_a_password_file_that_is_rotated_under_load_costs_no_error(
    database: Database, shared: Server, tmp_path: Path, server_first: bool
) -> None:
    path = tmp_path / "password"
    path.write_text("first\n")
    database(**app(password_file=str(path)))
    ask(connections[ALIAS])

    def on_server() -> None:
        change_on_server(shared, "second")

    def in_file() -> None:
        path.write_text("second\n")

    with repeating(query, 6):
        wait_for_new_connections()
        first, second = (on_server, in_file) if server_first else (in_file, on_server)
        first()
        sleep(0.7)  # all connections expire, and new ones are refused
        second()
        wait_for_new_connections()


def test_a_provider_is_asked_for_each_connection_with_its_parameters(
    database: Database, shared: Server
) -> None:
    asked.clear()
    database(**app(password_provider=f"{__name__}.provide"))
    with repeating(query, 6):
        wait_for_new_connections()
        change_on_server(shared, "second")
        token["password"] = "second"
        wait_for_new_connections()
    assert len(asked) > 2
    assert asked[-1]["user"] == "app"
    assert asked[-1]["host"] == "127.0.0.1"
    assert "password" not in asked[-1]


def test_a_wrong_password_fails_at_once(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("wrong")
    database(**app(password_file=str(path)))
    call = Call(lambda: ask(connections[ALIAS]))
    with pytest.raises(OperationalError, match="password authentication failed"):
        call.result(within=10)


def refusals(server: Server) -> int:
    return server.log.count("password authentication failed")


def is_served() -> bool:
    try:
        return bool(ask(connections[ALIAS]))
    except OperationalError:
        connections[ALIAS].close()
        return False


@pytest.mark.parametrize("worked", [False, True])
def test_a_new_password_in_the_file_does_not_wait_for_the_next_attempt_with_the_old_one(
    database: Database, shared: Server, tmp_path: Path, worked: bool
) -> None:
    """The old one is tried less and less often."""
    path = tmp_path / "password"
    path.write_text("first" if worked else "wrong")
    entry = app(password_file=str(path))
    entry["OPTIONS"]["pool"]["timeout"] = 0.1
    database(**entry)
    assert is_served() is worked
    change_on_server(shared, "second")
    first, began = refusals(shared), monotonic()

    def is_refused_again(count: int) -> bool:
        is_served()
        return refusals(shared) > count

    wait_until(lambda: is_refused_again(-1) and monotonic() - began > 4, "the attempts to get rare")
    refused = refusals(shared)
    wait_until(lambda: is_refused_again(refused), "one more")
    assert refused <= first + 12
    path.write_text("second")  # the old one has just been tried: again after 4 s, or after 1 s
    began = monotonic()
    wait_until(is_served, "the new password to be used")
    assert monotonic() - began < 2.5


def test_a_provider_is_not_asked_more_often_than_the_server(database: Database) -> None:
    asked.clear()
    token["password"] = "wrong"
    database(**app(password_provider=f"{__name__}.provide"))
    end = monotonic() + 3
    while monotonic() < end:
        assert not is_served()
        sleep(0.02)
    assert len(asked) <= 8


def test_without_a_pool_the_password_is_read_for_each_connection(
    database: Database, shared: Server, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    path.write_text("first")
    wrapper = database(**{**app(password_file=str(path)), "OPTIONS": {"pool": None}})
    ask(wrapper)
    wrapper.close()
    change_on_server(shared, "second")
    path.write_text("second")
    assert ask(wrapper)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"password_file": "/nowhere/password"}, "DB_PASSWORD_FILE cannot be read"),
        ({"password_provider": f"{__name__}.fail"}, "DB_PASSWORD_PROVIDER failed: ConnectionError"),
    ],
)
@pytest.mark.parametrize("pooled", [True, False])
def test_a_password_source_that_fails_is_named(
    database: Database, extra: dict[str, str], message: str, pooled: bool
) -> None:
    pool = {"min_size": 1, "timeout": 2} if pooled else None
    wrapper = database(**{**app(**extra), "OPTIONS": {"pool": pool}})
    with pytest.raises(OperationalError, match=message) as caught:
        ask(wrapper)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("nowhere.to.be.found", "cannot be imported"),
        ("builtins.len", "returned int, not a password"),
    ],
)
def test_a_wrong_provider_is_named(database: Database, provider: str, message: str) -> None:
    wrapper = database(**app(password_provider=provider))
    with pytest.raises(ImproperlyConfigured, match=message):
        ask(wrapper)


def test_a_password_source_that_fails_for_a_moment_is_asked_again(
    database: Database, shared: Server, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    path.write_text("first")
    one = {"pool": {"min_size": 1, "max_size": 1, "timeout": 20, "max_lifetime": 0.2}}
    wrapper = database(**{**app(password_file=str(path)), "OPTIONS": one})
    ask(wrapper)
    path.unlink()
    sleep(0.3)  # the connection expires before it is returned
    wrapper.close()
    call = Call(lambda: ask(connections[ALIAS]))
    stats = wrapper.pool.get_stats
    wait_until(lambda: stats()["requests_waiting"] == 1, "the request to wait")
    errors = stats().get("connections_errors", 0)
    wait_until(lambda: stats().get("connections_errors", 0) > errors, "an attempt to fail")
    assert call.is_alive()
    path.write_text("first")
    assert call.result(within=20)
