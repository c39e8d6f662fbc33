"""All facts that the page shows: this process's pools, their servers and sessions, findings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from django.db import connections

from abs_orm_app.capacity.budget import Limit, allowance, in_use
from abs_orm_app.checks.collect import all_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.config.entry import app_options
from abs_orm_app.facts.active import Active, active
from abs_orm_app.facts.databases import Configured, configured_databases
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.sessions import Fleet
from abs_orm_app.integrations.admin_page.answers import Told, ask_all
from abs_orm_app.integrations.admin_page.live import Live, live
from abs_orm_app.integrations.admin_page.neighbours import Row, rows


@dataclass(frozen=True, kw_only=True)
class Panel(Report):
    """One alias in the process that is shown."""

    live: Live | None  # None: no pool of ours, or nothing has used it yet


@dataclass(frozen=True, kw_only=True)
class Database:
    """One database on a server, with all who are connected."""

    aliases: tuple[str, ...]
    project: str  # whose processes are this deployment's; "" if they have no name
    server: ServerFacts
    fleet: Fleet

    @property
    def allowance(self) -> Limit:
        return allowance(self.server)

    @property
    def in_use(self) -> int:
        return in_use(self.allowance, self.server)


@dataclass(frozen=True, kw_only=True)
class Overview:
    pid: int  # of the process that is shown
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]  # of all processes of this machine
    databases: tuple[Database, ...]
    findings: tuple[Finding, ...]  # the gravest first


# A process that a reader has pinned, and what it has told of its pools; None: it is this one.
Pinned = tuple[int, Mapping[str, Live] | None]


def overview(pinned: Pinned | None = None) -> Overview:
    """Look at this process, or at what the pinned one has told, and at all servers.

    Takes as long as `ask_all`.
    """
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
    """`told`: the pools of the pinned process; None: of this one."""
    pool = live(configured.alias) if told is None else told.get(configured.alias)
    state = active(configured)
    if told is not None and isinstance(state, Active):
        state = pool.active if pool else _unused(state) if configured.hardened else None
    return Panel(
        configured=configured,
        active=state,
        live=pool,
        usage=pool.past.usage if pool else None,
        server=answer[0] if isinstance(answer, tuple) else answer,
    )


def _unused(mine: Active) -> Active:
    return replace(mine, opened=False, connections=0, idle=0, waiting=0, trouble="")


def _databases(answers: Iterable[tuple[str, Told | Failure]]) -> list[Database]:
    """One for each that answered, however many aliases it has."""
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
