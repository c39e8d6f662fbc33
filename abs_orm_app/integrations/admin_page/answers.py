"""What the servers answer, asked once for all who look: at most one of them asks each alias."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from django.db import connections

from abs_orm_app.facts.borrowed import ask_borrowed, is_full
from abs_orm_app.facts.connecting import locate_timeout, parameters_of
from abs_orm_app.facts.connection_test import pooler_of, read_both
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.pooler import is_pooled
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.sessions import Fleet
from abs_orm_app.integrations.unpooled import (
    SECONDS,
    TROUBLE,
    BusyError,
    Latest,
    failure_outside_pool,
    run_unpooled,
)

Told = tuple[ServerFacts, Fleet]

# A forked child begins with none: the parent's locks may have been taken at the fork.
_latest: dict[tuple[int, str, str], Latest[Told | Failure]] = {}


def ask_all(databases: Sequence[Configured]) -> dict[str, Told | Failure]:
    """Ask the servers of these aliases at the same time; takes `SECONDS` at most."""
    with ThreadPoolExecutor(max_workers=max(len(databases), 1)) as executor:
        answers = executor.map(_ask_or_wait, databases)
        return {database.alias: answer for database, answer in zip(databases, answers, strict=True)}


def _ask_or_wait(database: Configured) -> Told | Failure:
    key = (os.getpid(), database.alias, database.address)
    try:
        return _latest.setdefault(key, Latest()).get(lambda: _ask(database), SECONDS)
    except BusyError as late:
        return failure_outside_pool(late)


def _ask(database: Configured) -> Told | Failure:
    try:
        return run_unpooled(lambda: _read(database.alias))
    except TROUBLE as error:
        if is_full(error) and (told := ask_borrowed(database.alias, read_both)):
            return told
        return failure_outside_pool(locate_timeout(error, database), database)


def _read(alias: str) -> Told:
    wrapper: Any = connections[alias]
    wrapper.ensure_connection()
    connection = wrapper.connection
    server, fleet = read_both(connection)
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
