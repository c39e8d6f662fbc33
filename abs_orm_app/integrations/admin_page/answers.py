"""What the servers answer, asked once for all who look: at most one of them asks each alias."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from time import monotonic
from typing import Any

from django.db import connections

from abs_orm_app.facts.connecting import parameters_of
from abs_orm_app.facts.connection_test import pooler_of
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.pooler import is_pooled
from abs_orm_app.facts.server import ServerFacts, read_server
from abs_orm_app.facts.sessions import Fleet, read_fleet
from abs_orm_app.integrations.unpooled import (
    SECONDS,
    TROUBLE,
    BusyError,
    explain_trouble,
    run_unpooled,
)

FRESH = 1.0  # seconds for which an answer is given again

Answer = tuple[ServerFacts, Fleet]


@dataclass
class _Latest:
    """The last answer of one alias. Who holds the lock asks; the others wait for what it gets."""

    answer: Answer | Failure | None = None
    at: float = float("-inf")
    lock: Lock = field(default_factory=Lock)


# A forked child begins with none: the parent's locks may have been taken at the fork.
_latest: dict[tuple[int, str, str], _Latest] = {}


def ask_all(databases: Sequence[Configured]) -> dict[str, Answer | Failure]:
    """Ask the servers of these aliases at the same time; takes `SECONDS` at most."""
    with ThreadPoolExecutor(max_workers=max(len(databases), 1)) as executor:
        answers = executor.map(_ask_or_wait, databases)
        return {database.alias: answer for database, answer in zip(databases, answers, strict=True)}


def _ask_or_wait(database: Configured) -> Answer | Failure:
    key = (os.getpid(), database.alias, database.address)
    latest = _latest.setdefault(key, _Latest())
    if not latest.lock.acquire(timeout=SECONDS):
        late = BusyError("Another request has been asking this server for too long.")
        return explain_trouble(late)
    try:
        if latest.answer is None or monotonic() - latest.at > FRESH:
            latest.answer = _ask(database)
            latest.at = monotonic()
        return latest.answer
    finally:
        latest.lock.release()


def _ask(database: Configured) -> Answer | Failure:
    try:
        return run_unpooled(lambda: _read(database.alias))
    except TROUBLE as error:
        return explain_trouble(error, database)


def _read(alias: str) -> Answer:
    wrapper: Any = connections[alias]
    wrapper.ensure_connection()
    connection = wrapper.connection
    server, fleet = read_server(connection), read_fleet(connection)
    # What follows is of the session, and would not be seen in a transaction with its own limit.
    wrapper.commit()
    wrapper.set_autocommit(True)
    settings = {**server.settings, "statement_timeout": _statement_timeout(connection)}
    pooler = None
    if is_pooled(connection):  # else there is no need to ask for a password once more
        pooler = pooler_of(wrapper, connection, parameters_of(wrapper))
    return replace(server, settings=settings, pooler=pooler), fleet


def _statement_timeout(connection: Any) -> float:
    """Seconds; 0 is off."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'")
        return int(cursor.fetchone()[0]) / 1000
