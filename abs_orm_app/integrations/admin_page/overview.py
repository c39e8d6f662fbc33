"""All that the page shows: this process's pools, their servers, who else is there, findings."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from django.db import connections

from abs_orm_app.capacity.budget import Limit, allowance, in_use
from abs_orm_app.checks.collect import all_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.facts.active import Active, active
from abs_orm_app.facts.connecting import parameters_of
from abs_orm_app.facts.connection_test import pooler_of
from abs_orm_app.facts.databases import Configured, configured_databases
from abs_orm_app.facts.failure import Failure, explain
from abs_orm_app.facts.pooler import is_pooled
from abs_orm_app.facts.pools import current_pools
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts, read_server
from abs_orm_app.facts.sessions import Fleet, read_fleet
from abs_orm_app.integrations.admin_page.history import Second, history
from abs_orm_app.integrations.admin_page.side_connections import TROUBLE, beside_the_pools
from abs_orm_app.pool.entry import Holder
from abs_orm_app.pool.snapshot import Snapshot, snapshot

State = Literal["ok", "busy", "exhausted", "unused", "stock", "none"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One alias in this process."""

    configured: Configured
    active: Active | Failure | None
    now: Snapshot | None  # None: no pool of ours, or nothing has used it yet
    holders: tuple[Holder, ...]
    past: tuple[Second, ...]

    @property
    def state(self) -> State:
        if self.now is None:
            if not isinstance(self.active, Active):
                return "none"
            return "stock" if self.active.opened else "unused"
        if self.now.waiting and self.now.in_use >= self.now.limit:
            return "exhausted"
        return "busy" if self.now.waiting or self.now.overflow else "ok"


@dataclass(frozen=True, kw_only=True)
class Database:
    """One database on a server, with all who are connected."""

    aliases: tuple[str, ...]
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
    unreached: tuple[tuple[str, Failure], ...]  # aliases, and why
    findings: tuple[Finding, ...]  # the gravest first


def overview() -> Overview:
    """Look at this process and at all servers. Ends in time."""
    configured = configured_databases()
    panels = tuple(map(_panel, configured))
    asked = [database for database in configured if database.vendor == "postgresql"]
    with ThreadPoolExecutor(max_workers=max(len(asked), 1)) as executor:
        answers = dict(zip((d.alias for d in asked), executor.map(_ask, asked), strict=True))
    reports = [
        Report(configured=panel.configured, active=panel.active, server=server, test=None)
        for panel in panels
        for server in [_facts(answers.get(panel.configured.alias))]
    ]
    return Overview(
        panels=panels,
        databases=tuple(_databases(answers.items())),
        unreached=tuple((a, found) for a, found in answers.items() if isinstance(found, Failure)),
        findings=tuple(sorted(all_findings(reports), key=lambda finding: -finding.level)),
    )


def _panel(configured: Configured) -> Panel:
    in_effect = active(configured)
    pool = current_pools().get(configured.alias)
    if pool is None or pool.closed:
        return Panel(configured=configured, active=in_effect, now=None, holders=(), past=())
    return Panel(
        configured=configured,
        active=in_effect,
        now=snapshot(pool),
        holders=tuple(pool.holders()),
        past=tuple(history(pool)),
    )


Answer = tuple[ServerFacts, Fleet]


def _ask(configured: Configured) -> Answer | Failure:
    try:
        return beside_the_pools(lambda: _answer(configured.alias))
    except TROUBLE as error:
        return explain(error, configured)


def _answer(alias: str) -> Answer:
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


def _facts(answer: Answer | Failure | None) -> ServerFacts | Failure | None:
    return answer[0] if isinstance(answer, tuple) else answer


def _databases(answers: Iterable[tuple[str, Answer | Failure]]) -> list[Database]:
    """One for each that answered, however many aliases it has."""
    found: dict[tuple[str, str], tuple[list[str], Answer]] = {}
    for alias, answer in answers:
        if not isinstance(answer, Failure):
            key = (answer[0].identity, answer[0].database)
            found.setdefault(key, ([], answer))[0].append(alias)
    return [
        Database(aliases=tuple(aliases), server=server, fleet=fleet)
        for aliases, (server, fleet) in found.values()
    ]
