"""Django's report of an error, on the page or in a mail, shows no password of a connection.

It has the variables of each frame of the error and of its causes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from django.core import mail
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import path
from django.views.debug import ExceptionReporter

from abs_orm_app.environment import database_from_env
from tests.support.projects import database, entry
from tests.support.servers import PASSWORD_OVER_TCP, Server

pytestmark = [
    pytest.mark.server(hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right'"]),
    pytest.mark.usefixtures("unblocked"),
]

BEGIN = "7qZ"[::-1]  # what no report has: it shows lines of the source, too
MARK = f"{BEGIN}-'\\%"
ALIAS = "marked"
SMALL = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "0.5"}


def view(_request: HttpRequest) -> HttpResponse:
    connections[ALIAS].cursor()
    return HttpResponse()


urlpatterns = [path("", view)]


def from_env(host: str, port: int, mode: str) -> dict[str, Any]:
    address = f"postgresql://app:{quote(MARK)}@{host}:{port}/postgres?connect_timeout=3"
    variables = SMALL if mode == "pool" else {}
    return database_from_env(environ={"DATABASE_URL": address, "DB_POOL_MODE": mode, **variables})


def reports() -> str:
    """What Django reports of an attempt to use the alias."""
    try:
        connections[ALIAS].cursor()
    except Exception:
        reporter = ExceptionReporter(RequestFactory().get("/"), *sys.exc_info())
        return reporter.get_traceback_html() + reporter.get_traceback_text()
    raise AssertionError("no error")


@contextmanager
def marked(given: dict[str, Any]) -> Iterator[None]:
    with database(given, ALIAS), override_settings(DEBUG=True):
        yield


def nobody(_params: Any) -> bytes:
    return MARK.encode()


@pytest.mark.parametrize("mode", ["pool", "null", "persistent", "pgbouncer"])
@pytest.mark.parametrize("problem", ["wrong password", "unknown name", "refused", "bad option"])
def test_a_failed_connection_shows_no_password(shared: Server, mode: str, problem: str) -> None:
    host = "no.such.name.invalid" if problem == "unknown name" else "127.0.0.1"
    given = from_env(host, 1 if problem == "refused" else shared.port, mode)
    if problem == "bad option":
        given["OPTIONS"]["no_such_option"] = "1"
    with marked(given):
        for _ in range(2):  # the first of a thread goes another way
            text = reports()
            assert BEGIN not in text
            assert "Traceback" in text


@pytest.mark.parametrize("mode", ["pool", "null"])
@pytest.mark.parametrize("problem", ["name", "service", "provider"])
def test_settings_that_cannot_be_used_show_no_password(
    shared: Server, mode: str, problem: str
) -> None:
    given = from_env("127.0.0.1", shared.port, mode)
    if problem == "name":
        given["NAME"] = "x" * 64
    elif problem == "service":
        given["NAME"] = ""
    else:
        given["ABS_ORM_APP"]["password_provider"] = f"{__name__}.nobody"
    with marked(given):
        assert BEGIN not in reports()


def test_a_timeout_of_the_pool_with_its_cause_shows_no_password(server: Server) -> None:
    with marked(from_env("127.0.0.1", server.port, "pool")):
        server.stop()
        text = reports()
    assert "PoolTimeout" in text
    assert "direct cause" in text
    assert BEGIN not in text


@override_settings(
    ROOT_URLCONF=__name__,
    ADMINS=[("Admin", "admin@example.com")],
    ALLOWED_HOSTS=["testserver"],
    MIDDLEWARE=[],
)
@pytest.mark.parametrize("mode", ["pool", "null"])
@pytest.mark.parametrize("debug", [True, False], ids=["page", "mail"])
def test_a_view_that_fails_shows_no_password(shared: Server, mode: str, debug: bool) -> None:
    from django.utils.log import AdminEmailHandler

    handler = AdminEmailHandler(include_html=True)
    logger = logging.getLogger("django.request")
    logger.addHandler(handler)
    try:
        with (
            database(from_env("127.0.0.1", shared.port, mode), ALIAS),
            override_settings(DEBUG=debug),
        ):
            page = Client(raise_request_exception=False).get("/").content.decode()
    finally:
        logger.removeHandler(handler)
    html = [
        str(content) for sent in mail.outbox for content, _ in getattr(sent, "alternatives", ())
    ]
    assert html
    text = "".join([page, *html, *(str(sent.body) for sent in mail.outbox)])
    assert "authentication failed" in text
    assert "conn_params" in text  # the variables of Django's own frame
    assert BEGIN not in text


def test_parameters_are_as_they_were(shared: Server) -> None:
    given = entry(shared.conninfo, PASSWORD=MARK, OPTIONS={"sslpassword": MARK})
    with database(given, ALIAS):
        params = connections[ALIAS].get_connection_params()
    assert params["password"] == params["sslpassword"] == MARK
    assert {**params}["user"] in repr(params)
    assert BEGIN not in repr(params)


def test_each_value_of_the_parameters_shows_no_password(shared: Server) -> None:
    """Sentry and rich walk through a mapping in a frame, whatever its repr is."""
    options = {"sslpassword": MARK, "scram_client_key": MARK}
    with database(entry(shared.conninfo, PASSWORD=MARK, OPTIONS=options), ALIAS):
        params = connections[ALIAS].get_connection_params()
    for copy in (params, {**params}, dict(params)):
        assert BEGIN not in "".join(repr(value) for value in copy.values())
        assert str(copy["password"]) == "".join(copy["password"]) == MARK
