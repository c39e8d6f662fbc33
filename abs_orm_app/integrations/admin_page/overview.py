"""Gathers the facts on the page: this process's pools, their servers and sessions, findings."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from django.db import connections

from abs_orm_app.capacity.budget import Limit, allowance
from abs_orm_app.checks.collect import all_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.config.entry import app_options
from abs_orm_app.facts.active import Active, active, ask_borrowed, is_full
from abs_orm_app.facts.connecting import ERRORS, locate_timeout, parameters_of
from abs_orm_app.facts.connection_test import pooler_of, read_both
from abs_orm_app.facts.databases import Configured, configured_databases
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.pooler import is_pooled
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.sessions import Fleet
from abs_orm_app.integrations.admin_page.live import Live, live
from abs_orm_app.integrations.admin_page.neighbours import Row, rows
from abs_orm_app.integrations.unpooled import (
    SECONDS,
    BusyError,
    Latest,
    failure_outside_pool,
    run_unpooled,
)

Told = tuple[ServerFacts, Fleet]


@dataclass(frozen=True, kw_only=True)
class Panel(Report):
    live: Live | None  # None: not our pool, or nothing has used it yet


@dataclass(frozen=True, kw_only=True)
class Database:
    aliases: tuple[str, ...]
    project: str  # the application name of this deployment's processes; "" if they have none
    server: ServerFacts
    fleet: Fleet

    @property
    def allowance(self) -> Limit:
        return allowance(self.server)


@dataclass(frozen=True, kw_only=True)
class Overview:
    pid: int  # of the process shown
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]  # of all processes on this machine
    databases: tuple[Database, ...]
    findings: tuple[Finding, ...]  # most severe first


# The process that the viewer has pinned, and what it reports about its pools; None: this process.
Pinned = tuple[int, Mapping[str, Live] | None]


def overview(pinned: Pinned | None = None) -> Overview:
    """Examine this process, or the report of the pinned one, and query all servers."""
    configured = configured_databases()
    asked = [database for database in configured if database.vendor == "postgresql"]
    answers = ask_all(asked)
    pid, told = pinned or (os.getpid(), None)
    panels = tuple(_panel(database, answers.get(database.alias), told) for database in configured)
    return Overview(
        pid=pid,
        panels=panels,
        rows=tuple(rows()),
        databases=tuple(_databases(answers.items())),
        findings=tuple(sorted(all_findings(panels), key=lambda finding: -finding.level)),
    )


def _panel(
    configured: Configured, answer: Told | Failure | None, told: Mapping[str, Live] | None
) -> Panel:
    """Build one panel. `told`: the pools of the pinned process; None: use this process's."""
    pool = live(configured.alias) if told is None else told.get(configured.alias)
    state = active(configured)
    if told is not None and isinstance(state, Active):
        unused = replace(state, opened=False, connections=0, idle=0, waiting=0, trouble="")
        state = pool.active if pool else unused if configured.hardened else None
    return Panel(
        configured=configured,
        active=state,
        live=pool,
        usage=pool.past.usage if pool else None,
        server=answer[0] if isinstance(answer, tuple) else answer,
    )


def _databases(answers: Iterable[tuple[str, Told | Failure]]) -> list[Database]:
    """Return each database that answered once, however many aliases it has."""
    found: dict[tuple[str, str], tuple[list[str], Told]] = {}
    for alias, answer in answers:
        if not isinstance(answer, Failure):
            key = (answer[0].identity, answer[0].database)
            found.setdefault(key, ([], answer))[0].append(alias)
    return [
        Database(
            aliases=tuple(aliases),
            project=app_options(connections[aliases[0]].settings_dict).get("project") or "",
            server=server,
            fleet=fleet,
        )
        for aliases, (server, fleet) in found.values()
    ]


# The process id is in the key, because a lock may be held when a child is forked.
_latest: dict[tuple[int, str, str], Latest[Told | Failure]] = {}


def ask_all(databases: Sequence[Configured]) -> dict[str, Told | Failure]:
    """Query the servers of these aliases concurrently, in at most `SECONDS`."""
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
    except ERRORS as error:
        if is_full(error) and (told := ask_borrowed(database.alias, read_both)):
            return told
        return failure_outside_pool(locate_timeout(error, database), database)


def _read(alias: str) -> Told:
    wrapper: Any = connections[alias]
    wrapper.ensure_connection()
    connection = wrapper.connection
    server, fleet = read_both(connection)
    # Read the session's own timeout: in the transaction, SET LOCAL hides it.
    wrapper.commit()
    wrapper.set_autocommit(True)
    asked = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"
    seconds = int(connection.execute(asked).fetchone()[0]) / 1000  # 0 is off
    settings = {**server.settings, "statement_timeout": seconds}
    pooler = None
    if is_pooled(connection):  # else there is no need to request the password again
        pooler = pooler_of(wrapper, connection, parameters_of(wrapper))
    return replace(server, settings=settings, pooler=pooler), fleet
