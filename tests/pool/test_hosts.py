"""The order in which hosts are tried, and how long each: tables of cases, and real listeners."""

from __future__ import annotations

import socket
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest

from abs_orm_app.pool import hosts
from abs_orm_app.pool.hosts import (
    Address,
    Hosts,
    Place,
    Try,
    allotted,
    is_answering,
    listed,
    ordered,
    resolved,
)
from tests.support.pools import LATE, opened, ours
from tests.support.proxy import Proxy
from tests.support.servers import Server

A, B, C = Place("a", "1", "127.0.0.1"), Place("b", "1", "127.0.0.2"), Place("c", "1", "127.0.0.3")


@pytest.mark.parametrize(
    ("params", "environ", "expected"),
    [
        ({"host": "db"}, {}, [Place("db", "5432")]),
        ({"host": "db", "port": 6543}, {}, [Place("db", "6543")]),
        ({"host": "a,b", "port": "1,2"}, {}, [Place("a", "1"), Place("b", "2")]),
        ({"host": "a, b", "port": "1"}, {}, [Place("a", "1"), Place("b", "1")]),
        ({"host": "a,b", "port": "1,"}, {}, [Place("a", "1"), Place("b", "5432")]),
        ({"hostaddr": "::1,::2"}, {}, [Place("", "5432", "::1"), Place("", "5432", "::2")]),
        ({"host": "a", "hostaddr": "::1"}, {}, [Place("a", "5432", "::1")]),
        ({}, {"PGHOST": "a,b", "PGPORT": "7"}, [Place("a", "7"), Place("b", "7")]),
        ({"host": "c"}, {"PGHOST": "a,b"}, [Place("c", "5432")]),
        ({}, {}, [Place("", "5432")]),
        ({"service": "app"}, {"PGHOST": "a"}, []),  # only libpq knows what it names
        ({}, {"PGSERVICE": "app"}, []),
        ({"host": "a,b", "port": "1,2,3"}, {}, []),  # libpq says what is wrong
    ],
)
def test_the_hosts_are_those_of_libpqs_parameters(
    params: dict[str, Any], environ: dict[str, str], expected: list[Place]
) -> None:
    assert listed(params, environ) == expected


def test_a_name_is_one_place_for_each_of_its_addresses() -> None:
    places = resolved([Place("localhost", "5432"), Place("/run", "5432"), Place("::1", "1")])
    assert Place("localhost", "5432", "127.0.0.1") in places
    assert Place("/run", "5432") in places
    assert Place("::1", "1", "::1") in places
    assert len(places) == len(set(places))


def test_one_name_that_resolves_is_enough() -> None:
    assert resolved([Place("no-such-host.invalid", "1"), B]) == [B]
    with pytest.raises(psycopg.OperationalError, match=r"failed to resolve host 'no-such-host.inv"):
        resolved([Place("no-such-host.invalid", "1")])


@pytest.mark.parametrize(
    ("dead", "expected"),
    [
        ({}, [A, B, C]),
        ({A: 5.0}, [B, C, A]),
        ({A: 5.0, B: 3.0}, [C, B, A]),
        ({A: 5.0, B: 3.0, C: 4.0}, [B, C, A]),
    ],
)
def test_the_dead_come_last(dead: dict[Place, float], expected: list[Place]) -> None:
    assert ordered([A, B, C], dead) == expected


def test_a_random_order_keeps_the_dead_last() -> None:
    seen = {tuple(ordered([A, B, C], {A: 1.0}, shuffle=True)) for _ in range(100)}
    assert seen == {(B, C, A), (C, B, A)}


@pytest.mark.parametrize(
    ("places", "short", "timeout", "expected"),
    [
        ([], 2, 10, []),
        ([A], 2, 10, [(A, 10)]),
        ([A, B], 2, 10, [(A, 2), (B, 10), (A, 10)]),
        ([A, B, C], 2, 10, [(A, 2), (B, 2), (C, 10), (A, 10), (B, 10)]),
        ([A, B], 2, 2, [(A, 2), (B, 2)]),
    ],
)
def test_each_place_has_its_part_of_the_time(
    places: list[Place], short: float, timeout: float, expected: list[tuple[Place, float]]
) -> None:
    assert allotted(places, short, timeout) == expected


def connecting(server: Server, *, timeout: float = 2.0) -> Try[Any]:
    def connect(params: dict[str, Any]) -> Any:
        return psycopg.connect(server.tcp_conninfo, **params)

    return Try(connect, lambda conn: conn.close(), lambda _: True, timeout, timeout)


@pytest.mark.parametrize("given", ["socket", "environment", "service", "default"])
def test_a_connection_leads_where_libpqs_own_leads(
    server: Server, shared: Server, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a list that has no IP address, or no host at all, at some places."""
    other = shared.port
    params = {"user": "postgres", "dbname": "postgres"}
    socket_first = {
        "host": f"{server.socket_dir},localhost",
        "hostaddr": ",127.0.0.1",
        "port": f"{server.port},{other}",
    }
    match given:
        case "socket":
            params |= socket_first
        case "environment":
            for name, value in socket_first.items():
                monkeypatch.setenv(f"PG{name.upper()}", value)
        case "service":
            file = tmp_path / "pg_service.conf"
            file.write_text(f"[app]\nhost=127.0.0.1\nport={server.port}\n")
            monkeypatch.setenv("PGSERVICEFILE", str(file))
            monkeypatch.setenv("PGHOST", "localhost")
            monkeypatch.setenv("PGPORT", str(other))
            params["service"] = "app"
        case "default":  # libpq's own directory, where this server is not
            monkeypatch.setenv("PGHOST", str(shared.socket_dir))
            params |= {"host": ",127.0.0.1", "port": f"{other},{server.port}"}
    with opened(ours, "", min_size=1, kwargs=params) as pool, pool.connection() as conn:
        assert conn.execute("SHOW port").fetchone() == (str(server.port),)


def test_a_dead_host_costs_one_connection_its_time_and_the_next_none(server: Server) -> None:
    with Proxy(server.port) as dead, Proxy(server.port) as alive:
        dead.blackhole()
        params = {"host": "127.0.0.1,127.0.0.1", "port": f"{dead.port},{alive.port}"}
        pool = Hosts()
        how = connecting(server, timeout=LATE)
        pool.connect(Address(params), how).close()
        assert pool.connect_seconds < LATE, "the time of the dead one is not in it"
        began = monotonic()
        conn = pool.connect(Address(params), how)
        assert monotonic() - began < LATE
        assert conn.info.port == alive.port
        conn.close()


def test_a_dead_host_that_answers_again_has_its_place_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "TEST_AGAIN", 0.0)
    monkeypatch.setattr(hosts, "PROBATION", 0.0)
    with Proxy(server.port) as first, Proxy(server.port) as second:
        params = {"host": "127.0.0.1,127.0.0.1", "port": f"{first.port},{second.port}"}
        pool, how = Hosts(), connecting(server)

        def port() -> int:
            with pool.connect(Address(params), how) as conn:
                return int(conn.info.port)

        first.refuse()
        assert port() == second.port
        pool.ask_again()
        assert port() == second.port
        first.resume()
        assert port() == second.port, "it is not asked in a request's time"
        pool.ask_again()
        assert port() == first.port


def test_the_error_names_each_place(server: Server) -> None:
    with Proxy(server.port) as first, Proxy(server.port) as second:
        ports = f"{first.port},{second.port}"
        first.refuse()
        second.refuse()
        params = {"host": "127.0.0.1,127.0.0.1", "port": ports}
        with pytest.raises(psycopg.OperationalError) as caught:
            Hosts().connect(Address(params), connecting(server))
    for proxy in (first, second):
        assert f"- host: '127.0.0.1', port: '{proxy.port}', hostaddr: '127.0.0.1': " in str(
            caught.value
        )


def test_a_host_of_the_wrong_role_is_used_if_there_is_no_other(server: Server) -> None:
    with Proxy(server.port) as first, Proxy(server.port) as second:
        params = {"host": "127.0.0.1,127.0.0.1", "port": f"{first.port},{second.port}"}
        for fitting, expected in (
            ({second.port}, second.port),
            ({first.port, second.port}, first.port),
            (set[int](), first.port),
        ):
            how = connecting(server)
            closed: list[Any] = []
            how = Try(
                how.connect,
                lambda conn, closed=closed: closed.append(conn),  # type: ignore[misc]
                lambda conn, fitting=fitting: conn.info.port in fitting,  # type: ignore[misc]
                2.0,
                2.0,
            )
            conn = Hosts().connect(Address(params), how)
            assert conn.info.port == expected
            assert conn not in closed
            for each in (conn, *closed):
                each.close()


def test_a_server_that_answers_is_told_from_an_open_port(server: Server) -> None:
    unix = Place(str(server.socket_dir), str(server.port))
    assert is_answering(unix)
    assert is_answering(Place("x", str(server.port), "127.0.0.1"))
    assert not is_answering(Place(str(Path(server.socket_dir) / "none"), str(server.port)))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        assert not is_answering(Place("x", port, "127.0.0.1"), timeout=0.1)
    assert not is_answering(Place("x", port, "127.0.0.1"), timeout=0.1)
