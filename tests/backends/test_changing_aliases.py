"""An alias that changes at run time never answers from its old server, database or role."""

from __future__ import annotations

import threading
from functools import partial
from time import monotonic
from typing import Any, cast

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import ConnectionHandler

from abs_orm_app.pool import upkeep
from abs_orm_app.pool.registry import pools
from tests.support.databases import ALIAS, Database, ask, entry
from tests.support.pools import APP, Call, staying
from tests.support.servers import wait_until

SMALL = {"pool": {"min_size": 1, "max_size": 2, "timeout": 10}}

pytestmark = pytest.mark.server(roles=["tenant_a LOGIN", "tenant_b LOGIN"])


def role(alias: str = ALIAS) -> Any:
    return ask(connections[alias], "SELECT current_user")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "USER": ({"USER": "tenant_b"}, "tenant_b UTC"),
    "OPTIONS": ({"OPTIONS": {**SMALL, "assume_role": "tenant_b"}}, "tenant_b UTC"),
    "TIME_ZONE": ({"TIME_ZONE": "Asia/Tokyo"}, "postgres Asia/Tokyo"),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_new_entry_of_an_alias_gets_a_pool_of_its_own(
    database: Database, change: dict[str, Any], expected: str
) -> None:
    state = "SELECT current_user || ' ' || current_setting('TimeZone')"
    database(OPTIONS=SMALL)
    assert ask(connections[ALIAS], state) == "postgres UTC"
    del connections[ALIAS]
    database(**{"OPTIONS": SMALL, **change})
    assert ask(connections[ALIAS], state) == expected


def test_a_new_way_to_clean_the_connections_of_an_alias_is_followed(database: Database) -> None:
    left = "SELECT current_setting('app.tenant', true)"
    for reset, found in (("never", "7"), ("dirty", None)):
        database(OPTIONS={"pool": {**SMALL["pool"], "max_size": 1}}, ABS_ORM_APP={"reset": reset})
        ask(connections[ALIAS], "SET app.tenant = '7'")
        connections[ALIAS].close()
        assert (ask(connections[ALIAS], left) or None) == found
        del connections[ALIAS]


def test_an_option_that_is_changed_in_place_gets_a_pool_of_its_own(database: Database) -> None:
    database(OPTIONS={**SMALL})
    assert role() == "postgres"
    connections[ALIAS].close()
    connections.databases[ALIAS]["OPTIONS"]["assume_role"] = "tenant_a"
    assert role() == "tenant_a"


def test_a_thread_that_has_the_old_entry_is_refused_with_what_to_do(database: Database) -> None:
    database(USER="tenant_a", OPTIONS=SMALL)
    changed, asked = threading.Event(), threading.Event()

    def query_twice() -> Any:
        before = role()
        connections[ALIAS].close()
        asked.set()
        changed.wait(20)
        try:
            return before, role()
        finally:
            del connections[ALIAS]

    call = Call(query_twice)
    assert asked.wait(20)
    del connections[ALIAS]
    database(USER="tenant_b", OPTIONS=SMALL)
    assert role() == "tenant_b"
    changed.set()
    with pytest.raises(ImproperlyConfigured, match=r"changed .*del connections.* Otherwise"):
        call.result(within=20)


def test_an_option_that_no_copy_is_equal_to_keeps_its_pool(database: Database) -> None:
    reset = partial(isinstance, object)
    database(OPTIONS={"pool": {**SMALL["pool"], "reset": reset}})
    wrapper: Any = connections[ALIAS]
    first = wrapper.pool
    ask(wrapper)
    wrapper.close()
    assert wrapper.pool is first


def test_the_pool_of_an_alias_that_is_gone_ends(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_INTERVAL", 0.2)
    for number in range(5):
        alias = f"tenant_{number}"
        connections.databases[alias] = entry(
            database.server, ABS_ORM_APP={"release": database.release}, OPTIONS=SMALL
        )
        connections.configure_settings(connections.databases)
        assert role(alias) == "postgres"
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]
    wait_until(lambda: not any(alias.startswith("tenant_") for alias in pools), "the pools to end")
    wait_until(lambda: database.server.sessions(APP) == 0, "their sessions to end")


def test_a_thread_that_keeps_its_connection_has_the_new_entry_of_its_alias(
    database: Database,
) -> None:
    database(USER="tenant_a", OPTIONS=SMALL)
    asked, changed = threading.Event(), threading.Event()

    def query_twice() -> Any:
        before = role()
        asked.set()
        changed.wait(20)
        return before, role()

    call = Call(query_twice)
    assert asked.wait(20)
    connections.databases[ALIAS]["USER"] = "tenant_b"
    assert role() == "tenant_b"
    changed.set()
    assert call.result(within=20) == ("tenant_a", "tenant_b")


def test_a_thread_that_keeps_a_connection_of_an_alias_that_is_gone_keeps_no_session(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_INTERVAL", 0.2)
    database(OPTIONS=SMALL)
    with staying(role):
        database.aliases.clear()
        del connections[ALIAS], connections.databases[ALIAS]
        wait_until(lambda: database.server.sessions(APP) == 0, "the sessions to end")


def test_an_alias_that_django_does_not_know_starves_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project may have a `ConnectionHandler` of its own."""
    monkeypatch.setattr(upkeep, "LOOK_INTERVAL", 0.2)
    options = {"ABS_ORM_APP": {"release": database.release}, "OPTIONS": SMALL}
    own = ConnectionHandler({"default": {}, "own": entry(database.server, **options)})

    def work() -> None:
        until = monotonic() + 1.5
        while monotonic() < until:
            ask(own["own"], "SELECT pg_sleep(0.01)")
        own["own"].close()

    began = monotonic()
    threads = [Call(work) for _ in range(6)]
    for thread in threads:
        thread.result(within=30)
    assert monotonic() - began < 5.0
    cast("Any", own["own"]).close_pool()
