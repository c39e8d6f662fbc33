"""The pool over TLS, with a certificate that is verified: `sslmode=verify-full`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

import psycopg
import pytest

from abs_orm_app.pool import liveness
from abs_orm_app.pool.liveness import Answer
from tests.support.debian import (
    DebianServer,
    make_certificate,
    make_client_certificate,
    needs_debian,
)
from tests.support.pools import APP, LATE, AnyPool, Call, opened, ours, pid, use
from tests.support.projects import manage
from tests.support.servers import Server
from tests.support.system import needs_openssl

pytestmark = [needs_debian, needs_openssl]

AT_ONCE = 5.0  # seconds, of a timeout of 30


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_certificate(directory, "localhost")
    return directory


@pytest.fixture(scope="module")
def module_server(certificates: Path) -> Iterator[Server]:
    with DebianServer(certificate=certificates) as server:
        yield server


def verified(server: Server, certificates: Path) -> str:
    root = certificates / "ca.crt"
    return f"{server.tcp_conninfo} host=localhost sslmode=verify-full sslrootcert={root}"


@pytest.fixture
def conninfo(shared: Server, certificates: Path) -> str:
    return verified(shared, certificates)


@pytest.fixture
def pool(conninfo: str) -> Iterator[AnyPool]:
    with opened(ours, conninfo, min_size=3, max_size=5) as pool:
        yield pool


def unencrypted(shared: Server) -> int:
    """The number of the pool's sessions that are unencrypted, by the server's count."""
    with shared.admin() as admin:
        row = admin.execute(
            "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl)"
            " FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = %s",
            [APP],
        ).fetchone()
    assert row is not None
    assert row[0] > 0
    return int(row[1])


def test_every_connection_is_encrypted_and_used_again(pool: AnyPool, shared: Server) -> None:
    first = use(pool)
    assert use(pool) == first
    for call in [Call(use, pool, "SELECT pg_sleep(0.1)") for _ in range(10)]:
        call.result(within=20)
    assert unencrypted(shared) == 0
    assert shared.sessions(APP) <= 5


def test_an_idle_connection_is_pinged_and_kept(pool: AnyPool) -> None:
    first = use(pool)
    sleep(0.6)  # after that long, the pool pings
    assert use(pool) == first


def test_an_unanswered_ping_ends_in_time(pool: AnyPool, shared: Server) -> None:
    with pool.connection() as conn:
        assert liveness.ping(conn, timeout=5) is Answer.ALIVE
        shared.suspend_backend(pid(conn))
        began = monotonic()
        try:
            assert liveness.ping(conn, timeout=0.2) is Answer.NONE
            assert monotonic() - began < AT_ONCE
        finally:
            shared.resume()
        conn.close()


def test_a_restart_of_the_server_costs_no_error(pool: AnyPool, shared: Server) -> None:
    before = use(pool)
    shared.restart()
    began = monotonic()
    assert use(pool) != before
    assert monotonic() - began < AT_ONCE
    assert unencrypted(shared) == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("host=127.0.0.1", "does not match host name"),
        ("sslrootcert=nowhere.crt", "root certificate file"),
        ("sslrootcert={others}/ca.crt", "certificate verify failed"),
        ("sslmode=require sslrootcert=system", "weak sslmode"),
        (
            "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "invalid SSL protocol version range",
        ),
    ],
)
def test_a_wrong_certificate_and_options_that_contradict_each_other_are_refused_at_once(
    conninfo: str, tmp_path: Path, changed: str, words: str
) -> None:
    make_certificate(tmp_path, "localhost")
    refused_at_once(f"{conninfo} {changed.format(others=tmp_path)}", words)


# Faults that pass


@pytest.fixture
def own(certificates: Path) -> Iterator[DebianServer]:
    """A server of the test's own."""
    with DebianServer(certificate=certificates) as server:
        yield server


@pytest.fixture
def open_pool(own: DebianServer, certificates: Path) -> Iterator[AnyPool]:
    """A pool that has connected."""
    with opened(ours, verified(own, certificates), min_size=1, max_size=1, timeout=30) as pool:
        use(pool)
        yield pool


def test_a_certificate_that_is_being_rotated_makes_requests_wait(
    own: DebianServer, open_pool: AnyPool, certificates: Path, tmp_path: Path
) -> None:
    """The server has the new one before this machine trusts it, or the other way round."""
    make_certificate(tmp_path, "localhost")
    own.use_certificate(tmp_path)
    own.restart()
    waiting = Call(use, open_pool)
    sleep(1.5)
    assert not waiting.error
    own.use_certificate(certificates)
    own.reload()
    assert waiting.result(within=30 + LATE)


def test_a_server_that_starts_before_its_certificate_is_there_makes_requests_wait(
    own: DebianServer, open_pool: AnyPool
) -> None:
    own.settings["ssl"] = "off"
    own.restart()
    waiting = Call(use, open_pool)
    sleep(1.5)
    assert not waiting.error
    own.settings["ssl"] = "on"
    own.restart()
    assert waiting.result(within=30 + LATE)


# Faults that last

CERT = """
local   all all trust
hostssl all all all cert
"""


def refused_at_once(conninfo: str, words: str) -> None:
    with opened(ours, conninfo, filled=False, min_size=1, timeout=30) as pool:
        call = Call(use, pool)
        with pytest.raises(psycopg.OperationalError, match=words) as caught:
            call.result(within=20)
        assert call.seconds < AT_ONCE
        assert "cannot be reached" not in str(caught.value)


def test_a_missing_client_certificate_is_refused_at_once(
    own: DebianServer, certificates: Path
) -> None:
    own.reload(CERT)
    refused_at_once(verified(own, certificates), "requires a valid client certificate")


def test_an_expired_client_certificate_is_refused_at_once(
    own: DebianServer, certificates: Path
) -> None:
    own.reload(CERT)
    for days, works in ((2, True), (-1, False)):
        make_client_certificate(certificates, "postgres", days=days)
        conninfo = (
            f"{verified(own, certificates)} sslcert={certificates / 'client.crt'}"
            f" sslkey={certificates / 'client.key'}"
        )
        if works:
            psycopg.connect(conninfo).close()
        else:
            refused_at_once(conninfo, "certificate expired")


def test_check_pool_shows_the_encryption(shared: Server, certificates: Path) -> None:
    root = quote(str(certificates / "ca.crt"))
    address = f"postgresql://postgres@localhost:{shared.port}/postgres"
    done = manage(
        "check_pool", "-v2", DATABASE_URL=f"{address}?sslmode=verify-full&sslrootcert={root}"
    )
    assert "TLS        TLSv1.3" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
