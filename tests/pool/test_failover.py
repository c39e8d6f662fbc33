"""A primary and its standby behind one address, with real replication: who is followed, and when.

`benchmarks/failover.py` measures the same with more writers and for longer.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from random import choice
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import PoolTimeout

from abs_orm_app.facts.snapshot import EVICTIONS
from abs_orm_app.pool import placement, roles
from abs_orm_app.pool.pool import HardenedPool
from tests.support.names import Hosts, refusal
from tests.support.pools import (
    APP,
    LATE,
    AnyPool,
    Call,
    MakePool,
    compared_with_stock,
    evict_one_for_each_reason,
    give_back,
    opened,
    ours,
    pid,
    stock,
    use,
)
from tests.support.processes import run
from tests.support.proxy import Proxy
from tests.support.replication import Standby, commit_on_both, follow
from tests.support.servers import TRUST, Server, wait_until

GRACE = 0.5  # seconds after the address is right, from when on nothing may fail
SIZE = 4

Fault = Callable[[], object]


class Pair:
    """A primary, its standby, and the address that leads to the primary."""

    def __init__(self, first: Server, second: Standby, address: Proxy) -> None:
        self.first, self.second, self.address = first, second, address
        self.conninfo = f"{first.tcp_conninfo} port={address.port}"
        self.acknowledged: list[int] = []
        self._keys = itertools.count()

    def switch_over(self) -> None:
        """The standby is promoted; the old primary is back as a standby, at the address."""
        self.first.stop()
        self.second.promote()
        follow(self.first, self.second)

    def lead_to_primary(self) -> None:
        self.address.target = self.second.port

    def write(self, pool: AnyPool, timeout: float | None = None) -> None:
        key = next(self._keys)
        with pool.connection(timeout) as conn:
            conn.execute("INSERT INTO written VALUES (%s)", [key])
        self.acknowledged.append(key)

    def try_to_write(self, pool: AnyPool, times: int = 1) -> list[str]:
        """The errors of so many writes."""
        errors = []
        for _ in range(times):
            try:
                self.write(pool)
            except psycopg.Error as error:
                errors.append(type(error).__name__)
        return errors

    def lost(self) -> set[int]:
        """Writes that were acknowledged, and are not on the new primary."""
        with self.second.admin() as admin:
            rows = admin.execute("SELECT key FROM written").fetchall()
        return set(self.acknowledged) - {key for (key,) in rows}


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Server() as first, Standby(first) as second, Proxy(first.port) as address:
        with first.admin() as admin:
            admin.execute("CREATE TABLE written (key bigint PRIMARY KEY)")
        commit_on_both(first)
        yield Pair(first, second, address)


def fill(pool: AnyPool, pair: Pair) -> None:
    """Use all connections of the pool at the same time, once, so that it has them all."""
    taken = [pool.getconn() for _ in range(SIZE)]
    give_back(pool, taken)
    pair.try_to_write(pool)


@compared_with_stock("it keeps the connections to what is now a standby until they expire")
def test_after_a_switchover_no_connection_to_the_old_primary_is_kept(
    pair: Pair, make: MakePool
) -> None:
    with opened(make, pair.conninfo, min_size=SIZE) as pool:
        fill(pool, pair)
        pair.switch_over()
        wait_until(lambda: pair.try_to_write(pool) == ["ReadOnlySqlTransaction"], "the standby")
        fill(pool, pair)
        pair.lead_to_primary()
        sleep(GRACE)
        assert pair.try_to_write(pool, times=5 * SIZE) == []
        assert pair.lost() == set()


def test_reads_are_served_while_the_address_is_wrong(pair: Pair) -> None:
    with opened(ours, pair.conninfo, min_size=SIZE) as pool:
        fill(pool, pair)
        pair.switch_over()
        wait_until(lambda: pair.try_to_write(pool) == ["ReadOnlySqlTransaction"], "the standby")
        end = monotonic() + 3 * roles.MISPLACED_LIFE
        while monotonic() < end:
            use(pool, "SELECT count(*) FROM written", timeout=5)
        opened_connections = pool.get_stats()["connections_num"]
        assert opened_connections < 10 * SIZE, "not one for each request"
        assert pool.get_stats()["connections_misplaced"] > 0


def test_with_read_write_a_write_waits_for_the_primary(pair: Pair) -> None:
    conninfo = f"{pair.conninfo} target_session_attrs=read-write"
    with opened(ours, conninfo, min_size=SIZE) as pool:
        fill(pool, pair)
        pair.switch_over()
        waiting = Call(pair.write, pool)
        sleep(GRACE)
        assert waiting.is_alive()
        pair.lead_to_primary()
        waiting.result(within=20)
        assert pair.try_to_write(pool, times=2 * SIZE) == []
        assert pair.lost() == set()


@pytest.mark.parametrize("make", [ours, stock])
def test_a_crash_and_a_promotion_cost_no_write_that_began_later(pair: Pair, make: MakePool) -> None:
    with opened(make, pair.conninfo, min_size=SIZE) as pool:
        fill(pool, pair)
        pair.first.kill()
        pair.address.refuse()  # drops the connections that it has forwarded, at once
        pair.address.resume()
        waiting = Call(pair.write, pool)
        pair.second.promote()
        pair.lead_to_primary()
        waiting.result(within=20)
        assert pair.try_to_write(pool, times=2 * SIZE) == []
        assert pair.lost() == set()


# What is left alone


def check_that_its_standby_is_kept(pool: AnyPool, pair: Pair) -> None:
    """Although the pool has seen the primary before."""
    use(pool)
    pair.address.target = pair.second.port
    pool.drain()  # psycopg_pool has it since 3.3
    backend = use(pool)
    sleep(2 * roles.MISPLACED_LIFE)
    assert use(pool) == backend
    assert _role(pool) == "on"


@pytest.mark.parametrize(
    ("attrs", "reads_only"), [("any", False), ("prefer-standby", False), ("", True)]
)
def test_an_alias_of_replicas_keeps_its_standby(pair: Pair, attrs: str, reads_only: bool) -> None:
    conninfo = pair.conninfo + (f" target_session_attrs={attrs}" if attrs else "")
    with opened(ours, conninfo, min_size=1, reads_only=reads_only) as pool:
        check_that_its_standby_is_kept(pool, pair)


@pytest.mark.parametrize("given", ["service=replica", ""])
def test_what_a_service_file_wants_counts(
    pair: Pair, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pg_service.conf"
    params = conninfo_to_dict(pair.conninfo, target_session_attrs="prefer-standby")
    lines = (f"{name}={value}" for name, value in params.items())
    file.write_text("\n".join(["[replica]", *lines]))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    if not given:
        monkeypatch.setenv("PGSERVICE", "replica")
    with opened(ours, given, min_size=1) as pool:
        check_that_its_standby_is_kept(pool, pair)


def test_a_pool_that_has_seen_only_standbys_keeps_them(pair: Pair) -> None:
    pair.address.target = pair.second.port
    with opened(ours, pair.conninfo, min_size=1) as pool:
        backend = use(pool)
        sleep(2 * roles.MISPLACED_LIFE)
        assert use(pool) == backend


def test_a_role_that_is_read_only_by_default_is_served(pair: Pair) -> None:
    with pair.first.admin() as admin:
        admin.execute("CREATE ROLE reader LOGIN")
        admin.execute("ALTER ROLE reader SET default_transaction_read_only = on")
    conninfo = f"{pair.conninfo} user=reader"
    with opened(ours, conninfo, min_size=1) as pool:
        assert isinstance(pool, HardenedPool)
        backend = use(pool)
        conn = pool.getconn()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as caught:
            conn.execute("CREATE TABLE x ()")
        pool.saw_error(conn, caught.value)
        pool.putconn(conn)
        sleep(2 * roles.MISPLACED_LIFE)
        assert use(pool) == backend


def test_a_server_that_is_made_read_only_is_left_and_used_again_when_it_has_recovered(
    pair: Pair,
) -> None:
    with opened(ours, pair.conninfo, min_size=SIZE) as pool:
        fill(pool, pair)
        backend = use(pool)
        make_read_only(pair.first, "on")
        wait_until(lambda: use(pool) != backend, "the pool to leave it")
        wait_until(lambda: pair.try_to_write(pool) != [], "a write to be refused")
        use(pool, "SELECT count(*) FROM written")
        make_read_only(pair.first, "off")
        sleep(GRACE)
        assert pair.try_to_write(pool, times=2 * SIZE) == []


def test_a_server_that_is_read_only_for_long_is_left_once_a_write_was_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool had come to terms with it, because nobody wrote."""
    monkeypatch.setattr(roles, "FORGET", 0.0)
    with opened(ours, pair.conninfo, min_size=1, max_size=1) as pool:
        backend = use(pool)
        make_read_only(pair.first, "on")
        wait_until(lambda: use(pool) != backend, "the pool to leave it")

        def is_kept() -> bool:
            use(pool)
            return not pool.placement.expectation.wants_primary

        wait_until(is_kept, "the pool to keep what it gets")
        kept = use(pool)
        sleep(2 * roles.MISPLACED_LIFE)
        assert use(pool) == kept
        with pool.connection() as conn:
            assert refuses(pool, conn)
        assert use(pool) != kept


# Standbys that are preferred


def test_a_pool_that_prefers_standbys_returns_to_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "PREFERRED_LIFE", 0.3)
    with Proxy(pair.second.port) as standby:
        hosts = f"host=127.0.0.1,127.0.0.1 port={pair.address.port},{standby.port}"
        conninfo = f"{pair.first.tcp_conninfo} {hosts} target_session_attrs=prefer-standby"
        with opened(ours, conninfo, min_size=1) as pool:
            assert _role(pool) == "on"
            standby.refuse()
            wait_until(lambda: _role(pool) == "off", "the primary, where there is no standby")
            standby.resume()
            wait_until(lambda: _role(pool) == "on", "the standby that is back", seconds=5)


def _role(pool: AnyPool) -> str | None:
    with pool.connection(timeout=20) as conn:
        role: str | None = conn.info.parameter_status("in_hot_standby")
        return role


def test_of_several_hosts_the_primary_is_found(pair: Pair) -> None:
    """Without target_session_attrs, as libpq does not."""
    with Proxy(pair.second.port) as other:
        hosts = f"host=127.0.0.1,127.0.0.1 port={pair.address.port},{other.port}"
        with opened(ours, f"{pair.first.tcp_conninfo} {hosts}", min_size=SIZE) as pool:
            fill(pool, pair)
            pair.switch_over()
            wait_until(lambda: pair.try_to_write(pool) == [], "the new primary, the second host")
            assert pair.try_to_write(pool, times=2 * SIZE) == []


# Names and hosts


@compared_with_stock("each new connection waits for the dead host first: psycopg keeps the order")
def test_a_dead_host_in_front_delays_the_first_connection_alone(
    server: Server, make: MakePool
) -> None:
    with Proxy(server.port) as dead, Proxy(server.port) as alive:
        hosts = f"host=127.0.0.1,127.0.0.1 port={dead.port},{alive.port} connect_timeout=3"
        dead.blackhole()
        conninfo = f"{server.tcp_conninfo} {hosts}"
        with opened(make, conninfo, min_size=1, max_size=4) as pool:
            taken = [pool.getconn()]
            for _ in range(3):
                began = monotonic()
                taken.append(pool.getconn())
                assert monotonic() - began < 3
            give_back(pool, taken)


def test_a_name_that_is_gone_for_a_while_costs_no_request(server: Server, tmp_path: Path) -> None:
    if reason := refusal():
        pytest.skip(reason)
    result = run(server, lose_the_name, server.conninfo, str(server.port), str(tmp_path / "hosts"))
    assert result.status == 0, result.errors
    assert "failed to resolve host 'db'" in result.errors
    assert "is connected again" in result.errors


def lose_the_name(admin: str, port: str, path: str) -> None:
    """In a process of its own: its resolver is the file."""
    hosts = Hosts(Path(path))
    hosts.set({"db": "127.0.0.1"})
    hosts.enter()
    conninfo = f"host=db port={port} user=postgres dbname=postgres"
    with opened(ours, conninfo, min_size=1) as pool:
        use(pool)
        hosts.set({})
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        waiting = Call(use, pool)
        sleep(1)
        assert waiting.is_alive(), waiting.error
        hosts.set({"db": "127.0.0.1"})
        waiting.result(within=10)


def test_a_dead_address_of_a_name_delays_the_first_connection_alone(
    server: Server, tmp_path: Path
) -> None:
    if reason := refusal():
        pytest.skip(reason)
    result = run(server, use_the_living_address, str(server.port), str(tmp_path / "hosts"))
    assert result.status == 0, result.errors


def use_the_living_address(port: str, path: str) -> None:
    hosts = Hosts(Path(path))
    hosts.set({"db": "127.0.0.2 127.0.0.3"})
    hosts.enter()
    found = socket.getaddrinfo("db", 1, socket.AF_INET, socket.SOCK_STREAM)
    first, second = (str(address[0]) for *_, address in found)
    with Proxy(int(port), host=second) as alive, socket.create_server((first, alive.port)):
        conninfo = f"host=db port={alive.port} user=postgres dbname=postgres connect_timeout=5"
        with opened(ours, conninfo, min_size=1, max_size=4) as pool:
            taken = []
            for _ in range(4):
                began = monotonic()
                taken.append(pool.getconn())
                assert monotonic() - began < 5
            assert {conn.info.hostaddr for conn in taken} == {second}
            give_back(pool, taken)


@pytest.mark.parametrize("fault", ["hba", "database"])
def test_what_is_a_mistake_at_first_passes_once_a_connection_has_worked(
    server: Server, fault: str
) -> None:
    """A standby whose pg_hba.conf differs takes over; a database is restored."""
    with server.admin() as admin:
        admin.execute("CREATE DATABASE shop")
    with opened(ours, f"{server.tcp_conninfo} dbname=shop", min_size=1) as pool:
        use(pool)
        if fault == "hba":
            server.reload("local all all trust")
            server.terminate(APP)
        else:
            with server.admin() as admin:
                admin.execute("DROP DATABASE shop WITH (FORCE)")
        waiting = Call(use, pool)
        sleep(1)
        assert waiting.is_alive(), waiting.error
        if fault == "hba":
            server.reload(TRUST)
        else:
            with server.admin() as admin:
                admin.execute("CREATE DATABASE shop")
        waiting.result(within=20)


def test_a_name_that_never_resolved_fails_at_once() -> None:
    with (
        pytest.raises(psycopg.OperationalError, match="resolve"),
        opened(ours, "host=no-such-host.invalid", min_size=1),
    ):
        pass


@pytest.mark.parametrize("given", ["addresses", "service"])
def test_one_primary_behind_two_addresses_is_not_connected_to_time_and_again(
    server: Server, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(server.port) as first, Proxy(server.port) as second:
        pool = ours(server.tcp_conninfo, min_size=8)
        pool.kwargs = lambda: {"port": choice([first.port, second.port])}  # noqa: S311
        if given == "service":
            both = {"host": "127.0.0.1,127.0.0.1", "port": f"{first.port},{second.port}"}
            params = {**conninfo_to_dict(server.tcp_conninfo), **both}
            lines = (f"{n}={value}" for n, value in params.items())
            file = tmp_path / "pg_service.conf"
            file.write_text("\n".join(["[app]", *lines, "load_balance_hosts=random"]))
            monkeypatch.setenv("PGSERVICEFILE", str(file))
            pool.conninfo, pool.kwargs = "service=app", None
        with opened(lambda _: pool, ""):
            end = monotonic() + 1.5
            while monotonic() < end:
                give_back(pool, [pool.getconn() for _ in range(8)])
                sleep(0.01)
            assert pool.statistics.connects <= 40


# Errors in use


def messages_of_a_checkout(server: Server, query: str, *, mute: bool = False) -> int:
    """Packets that a checkout sends for a connection at rest, after `query` has failed on another.

    The connection was used a moment ago: without a reason it is not pinged.
    """
    with (
        Proxy(server.port, mute=mute) as address,
        opened(ours, f"{server.tcp_conninfo} port={address.port}", min_size=2, max_size=2) as pool,
    ):
        pool.ping_after = 3600.0
        failing, other = pool.getconn(), pool.getconn()
        pool.putconn(other)
        with pytest.raises(psycopg.Error) as caught:
            failing.execute(query)
        pool.saw_error(failing, caught.value)
        before = address.client_messages
        pool.putconn(pool.getconn(timeout=20))
        sent = address.client_messages - before
        pool.putconn(failing)
        return sent


@pytest.mark.parametrize(
    ("sqlstate", "pings"),
    [
        ("57P01", 1),
        ("57P02", 1),
        ("57P03", 1),
        ("08000", 1),
        ("08006", 1),
        ("08P01", 1),
        ("57014", 0),
        ("40001", 0),
    ],
)
def test_an_error_of_the_servers_state_has_the_other_connections_pinged(
    shared: Server, sqlstate: str, pings: int
) -> None:
    """As a server or a pooler may say it without ending the session."""
    query = f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"
    assert messages_of_a_checkout(shared, query) == pings


def test_a_refused_write_has_the_other_connections_asked_where_the_server_reports_nothing(
    shared: Server,
) -> None:
    query = "BEGIN READ ONLY; CREATE TABLE written ()"
    assert messages_of_a_checkout(shared, query, mute=True) == 1
    assert messages_of_a_checkout(shared, query) == 0


def test_a_refused_write_has_the_other_connections_pinged_where_the_server_was_made_read_only(
    server: Server,
) -> None:
    with opened(ours, server.conninfo, min_size=2, max_size=2) as pool:
        pool.ping_after = 3600.0
        failing, other = pool.getconn(), pool.getconn()
        read_only = pid(other)
        pool.putconn(other)
        sleep(2 * roles.MISPLACED_LIFE)  # what is younger may still be used
        make_read_only(server, "on")
        wait_until(lambda: refuses(pool, failing), "the write to be refused")
        assert use(pool, timeout=20) != read_only
        pool.putconn(failing)


def make_read_only(server: Server, value: str) -> None:
    """As a managed service does with a server whose disk is full."""
    with server.admin() as admin:
        admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        admin.execute("SELECT pg_reload_conf()")


def refuses(pool: HardenedPool, conn: psycopg.Connection[Any]) -> bool:
    """True if a write fails on this connection; the pool is told."""
    try:
        conn.execute("CREATE TABLE IF NOT EXISTS written ()")
    except psycopg.errors.ReadOnlySqlTransaction as error:
        pool.saw_error(conn, error)
        return True
    return False


@pytest.mark.parametrize("seen", ["in use", "at its return", "before the other one is back"])
def test_a_connection_that_the_server_ends_makes_the_others_suspect(
    server: Server, seen: str
) -> None:
    """Used less than 0.5 s ago, the other one would be handed out without a ping."""
    with opened(ours, server.conninfo, min_size=2) as pool:
        ended, other = pool.getconn(), pool.getconn()
        hung = pid(other)
        with server.admin() as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid(ended)])
        server.suspend_backend(hung)
        if seen != "before the other one is back":
            pool.putconn(other)
        with pytest.raises(psycopg.OperationalError) as caught:  # psycopg 3.2.1 has no SQLSTATE
            ended.execute("SELECT 1")
        if seen == "in use":
            pool.saw_error(ended, caught.value)
        else:
            pool.putconn(ended)
        if seen == "before the other one is back":
            pool.putconn(other)
        served = Call(use, pool, "SELECT 1", 8.0)
        assert served.result(within=8 + LATE) != hung
        if seen == "in use":
            pool.putconn(ended)
        server.resume()


# What a pool says of its servers


def test_the_servers_of_a_pool_are_known(pair: Pair) -> None:
    with opened(ours, pair.conninfo, min_size=2) as pool:
        assert isinstance(pool, HardenedPool)
        address = f"127.0.0.1:{pair.address.port}"
        assert pool.placement.servers() == [placement.ServerInUse(address, "primary", 2, True)]
        pair.switch_over()
        wait_until(lambda: pair.try_to_write(pool) == ["ReadOnlySqlTransaction"], "the standby")
        assert [(each.role, each.wanted) for each in pool.placement.servers()] == [
            ("standby", False)
        ]


def test_what_was_replaced_is_counted_by_its_reason(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=1, max_size=3) as pool:
        evict_one_for_each_reason(pool, server)
        stats = pool.get_stats()
    counted = {reason: stats[f"connections_{reason}"] for reason in EVICTIONS}
    assert counted == {"stale": 1, "expired": 1, "misplaced": 1, "leaked": 1}
    assert stats["connections_lost"] == 2  # psycopg_pool's name for the stale and the leaked


def test_a_timeout_says_what_the_address_lacks(pair: Pair) -> None:
    conninfo = f"{pair.conninfo} target_session_attrs=read-write"
    with opened(ours, conninfo, min_size=1) as pool:
        pair.switch_over()
        with pytest.raises(PoolTimeout, match="session is read-only"):
            pair.write(pool, timeout=3.0)
