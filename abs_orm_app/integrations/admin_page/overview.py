"""All facts that the page shows: this process's pools, their servers and sessions, findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from django.db import connections

from abs_orm_app.backends.serving import requests_of
from abs_orm_app.capacity.budget import Limit, allowance, in_use
from abs_orm_app.checks.collect import all_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.config.entry import app_options
from abs_orm_app.facts.active import Active, active, current_pools
from abs_orm_app.facts.databases import Configured, configured_databases
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.sessions import Fleet
from abs_orm_app.facts.snapshot import Snapshot, snapshot
from abs_orm_app.integrations.admin_page.answers import Told, ask_all
from abs_orm_app.integrations.admin_page.history import Past, history
from abs_orm_app.integrations.admin_page.holders import HolderGroup, group_holders


@dataclass(frozen=True, kw_only=True)
class Live:
    """The pool of one alias in this process."""

    now: Snapshot
    past: Past
    holders: tuple[HolderGroup, ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One alias in this process."""

    configured: Configured
    active: Active | Failure | None
    live: Live | None  # None: no pool of ours, or nothing has used it yet
    server: ServerFacts | Failure | None  # None: it is not PostgreSQL


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
    panels: tuple[Panel, ...]
    databases: tuple[Database, ...]
    findings: tuple[Finding, ...]  # the gravest first


def overview() -> Overview:
    """Look at this process and at all servers. Takes as long as `ask_all`."""
    configured = configured_databases()
    asked = [database for database in configured if database.vendor == "postgresql"]
    answers = ask_all(asked)
    panels = tuple(_panel(database, answers.get(database.alias)) for database in configured)
    reports = [
        Report(
            configured=panel.configured,
            active=panel.active,
            server=panel.server,
            test=None,
            usage=panel.live.past.usage if panel.live else None,
        )
        for panel in panels
    ]
    return Overview(
        panels=panels,
        databases=tuple(_databases(answers.items())),
        findings=tuple(sorted(all_findings(reports), key=lambda finding: -finding.level)),
    )


def _panel(configured: Configured, answer: Told | Failure | None) -> Panel:
    return Panel(
        configured=configured,
        active=active(configured),
        live=_live(configured.alias),
        server=answer[0] if isinstance(answer, tuple) else answer,
    )


def _live(alias: str) -> Live | None:
    pool = current_pools().get(alias)
    if pool is None or pool.closed:
        return None
    now, holders = snapshot(pool), pool.holders()
    requests = requests_of({holder.thread for holder in holders})
    return Live(now=now, past=history(pool, now), holders=group_holders(holders, requests))


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
