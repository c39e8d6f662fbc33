"""A file, a service or a host name that does not exist on this machine: nobody waits for the
timeout, and the error, the log, the page and check_pool name the cause and what to do.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from django.db import OperationalError, connections

from abs_orm_app.pool.causes import cause_of
from abs_orm_app.pool.server_errors import IMPOSSIBLE, UNREACHABLE
from tests.support.databases import ask
from tests.support.pools import Call
from tests.support.projects import OURS, POOL, Ran, database
from tests.support.servers import wait_until

pytestmark = pytest.mark.usefixtures("unblocked")

VERIFY = "sslmode=verify-full sslrootcert="
SERVICES = "[shop]\nhost=127.0.0.1\n[broken]\nnonsense\n"


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    """Of a server that begins TLS, and gets no further."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def agree() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(8)
                        client.sendall(b"S")
                        client.recv(1)

        threading.Thread(target=agree, daemon=True).start()
        yield str(listener.getsockname()[1])
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


names_are_told = pytest.mark.skipif(
    psycopg.__version__ < "3.3", reason="psycopg itself, of which check_pool asks, says less"
)


@pytest.mark.parametrize(
    ("options", "problem", "detail", "hint"),
    [
        (
            {"sslmode": "verify-full", "sslrootcert": "/nowhere/ca.crt"},
            IMPOSSIBLE, 'root certificate file "/nowhere/ca.crt" does not exist', "sslrootcert",
        ),
        (
            {"sslmode": "verify-full", "sslrootcert": "/dev/null"},
            IMPOSSIBLE, 'could not read root certificate file "/dev/null"', "sslrootcert",
        ),
        (
            {"sslmode": "require", "sslcert": "{dir}/none", "sslkey": "/nowhere/app.key"},
            IMPOSSIBLE, "certificate file", "sslcert",
        ),
        ({"service": "nowhere"}, IMPOSSIBLE, 'service "nowhere" not found', "service name"),
        ({"service": "broken"}, IMPOSSIBLE, "syntax error in service file", "PGSERVICEFILE"),
        (
            {"service": "shop", "servicefile": "/nowhere/pg_service.conf"},
            IMPOSSIBLE, 'service file "/nowhere/pg_service.conf" not found', "PGSERVICEFILE",
        ),
        pytest.param(
            {"host": "nowhere.invalid"}, UNREACHABLE, "'nowhere.invalid': [Errno", "can resolve",
            marks=names_are_told,
        ),
        pytest.param(
            {"host": "x" * 70}, UNREACHABLE, "too long", "can resolve", marks=names_are_told
        ),
        ({"hostaddr": "nowhere"}, IMPOSSIBLE, 'network address "nowhere"', "option"),
        ({"port": "65536"}, IMPOSSIBLE, "port number", "option"),
        ({"gssencmode": "require"}, "", "GSSAPI encryption required", "gssencmode"),
    ],
)  # fmt: skip
def test_a_wrong_address_is_told_at_once(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    options: dict[str, str], problem: str, detail: str, hint: str,
) -> None:  # fmt: skip
    (tmp_path / "none").write_text("no certificate")
    (tmp_path / "pg_service.conf").write_text(SERVICES)
    options = {key: text.format(dir=tmp_path) for key, text in options.items()}
    file = options.pop("servicefile", str(tmp_path / "pg_service.conf"))
    monkeypatch.setenv("PGSERVICEFILE", file)
    entry = {
        "ENGINE": OURS, "NAME": "x", "USER": "x", "OPTIONS": {**options, **POOL},
        "HOST": options.pop("host", "127.0.0.1"), "PORT": options.pop("port", port),
    }  # fmt: skip
    with database(entry) as alias:
        call = Call(lambda: ask(connections[alias]))
        with pytest.raises(OperationalError) as caught:
            call.result(within=15)
        assert detail in str(caught.value)
        assert call.seconds < 5  # of 30
        cause = cause_of(connections[alias].pool.core)  # type: ignore[attr-defined]
        ran = Ran(database=[alias])
        wait_until(lambda: "cannot connect" in caplog.text, "the log, of another thread")
    assert cause is not None
    assert problem in cause.problem
    assert detail in cause.detail
    assert hint in cause.hint
    [told] = [line for line in caplog.messages if "cannot connect" in line]
    assert cause.problem in told
    assert detail in told
    said = " ".join(ran.out.split())
    assert ran.code == 1
    assert detail in said
    assert f"Fix: {cause.hint}" in said
