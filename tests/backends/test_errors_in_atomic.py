"""A connection that breaks inside of `atomic()`, while no new one can be had: the error arrives at
once, not when the pool's timeout is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import Error, OperationalError, connections, transaction

from tests.support.databases import ALIAS, Database, ask
from tests.support.pools import Call
from tests.support.servers import Server

TIMEOUT = 12.0  # of the pool
AT_ONCE = 4.0  # seconds, with room for a busy machine


@pytest.fixture
def down(database: Database, server: Server) -> Database:
    """An alias on a server of the test's own, which the test takes down."""
    database.server = server
    return database


def at_a_statement(server: Server) -> None:
    wrapper = connections[ALIAS]
    with transaction.atomic(using=ALIAS):
        ask(wrapper)
        server.stop("immediate")
        ask(wrapper)


def at_the_commit(server: Server) -> None:
    with transaction.atomic(using=ALIAS):
        ask(connections[ALIAS])
        server.stop("immediate")


def in_a_savepoint(server: Server) -> None:
    wrapper = connections[ALIAS]
    with transaction.atomic(using=ALIAS):
        ask(wrapper)
        with transaction.atomic(using=ALIAS):
            server.stop("immediate")
            ask(wrapper)


def when_the_savepoint_ends(server: Server) -> None:
    wrapper = connections[ALIAS]
    with transaction.atomic(using=ALIAS), transaction.atomic(using=ALIAS):
        ask(wrapper)
        server.stop("immediate")


def after_an_error_of_the_project(server: Server) -> None:
    with transaction.atomic(using=ALIAS):
        ask(connections[ALIAS])
        server.stop("immediate")
        raise OperationalError("of the project")


@pytest.mark.parametrize(
    "block",
    [
        at_a_statement,
        at_the_commit,
        in_a_savepoint,
        when_the_savepoint_ends,
        after_an_error_of_the_project,
    ],
)
def test_the_error_arrives_at_once(
    server: Server, down: Database, block: Callable[[Server], None]
) -> None:
    wrapper = down(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": TIMEOUT}})
    assert ask(wrapper)
    call = Call(run_and_close, block, server)
    with pytest.raises(Error) as caught:
        call.result(within=TIMEOUT + AT_ONCE)
    assert "couldn't get a connection" not in str(caught.value)
    assert call.seconds < AT_ONCE


def run_and_close(block: Callable[[Server], None], server: Server) -> None:
    try:
        block(server)
    finally:
        connections[ALIAS].close()


def test_the_thread_works_as_before_when_the_server_is_back(server: Server, down: Database) -> None:
    """The flag of autocommit is right, although no connection was there to set it on."""
    wrapper: Any = down(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": TIMEOUT}})

    def work() -> None:
        with pytest.raises(Error):
            at_a_statement(server)
        server.start()
        ask(connections[ALIAS], "CREATE TABLE written (n int)")
        ask(connections[ALIAS], "INSERT INTO written VALUES (1)")  # commits by itself
        with transaction.atomic(using=ALIAS):
            ask(connections[ALIAS], "INSERT INTO written VALUES (2)")
            transaction.set_rollback(True, using=ALIAS)
        connections[ALIAS].close()

    Call(work).result(within=TIMEOUT + 4 * AT_ONCE)
    assert ask(wrapper, "SELECT array_agg(n) FROM written") == [1]
