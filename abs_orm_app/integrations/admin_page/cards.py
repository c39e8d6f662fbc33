"""What the templates show: the facts, with what can be said of them, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from abs_orm_app.checks.finding import Finding
from abs_orm_app.config.texts import counted, printable
from abs_orm_app.facts import wording as facts_wording
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.databases import Setting, Value
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.sessions import Process
from abs_orm_app.facts.snapshot import COUNTERS
from abs_orm_app.integrations.admin_page import charts
from abs_orm_app.integrations.admin_page.diagnosis import PoolState, Trouble, diagnose, state_of
from abs_orm_app.integrations.admin_page.history import Past, percentile
from abs_orm_app.integrations.admin_page.live import Live
from abs_orm_app.integrations.admin_page.neighbours import Row
from abs_orm_app.integrations.admin_page.overview import Database, Overview, Panel
from abs_orm_app.integrations.admin_page.wording import amount, duration
from abs_orm_app.pool.placement import ServerInUse
from abs_orm_app.pool.roles import Role
from abs_orm_app.pool.statistics import Distribution

# What the badge of a state says, and its colour.
BADGES: dict[PoolState, tuple[str, str]] = {
    "ok": ("OK", "ok"),
    "overflow": ("overflow in use", "busy"),
    "waiting": ("requests wait", "busy"),
    "exhausted": ("exhausted", "failed"),
    "failed": ("", "failed"),  # what the server did
    "read-only": ("writes fail", "failed"),
    "broken": ("cannot be used", "failed"),
    "unused": ("not used yet", ""),
    "stock": ("not our pool", ""),
    "none": ("no pool", ""),
}
# The entry of the guide about a state.
GUIDE = {"exhausted": "pool-exhausted", "read-only": "writes-go-to-a-standby"}


@dataclass(frozen=True)
class TimeRow:
    """What was timed in the last five minutes."""

    name: str
    count: str
    p50: str
    p95: str
    p99: str


@dataclass(frozen=True, kw_only=True)
class LiveCard:
    """The pool of one alias in this process."""

    live: Live
    label: str  # of the gauge, for those who do not see it
    gauge: charts.Gauge
    charts: tuple[charts.Chart, ...]
    servers: str
    overflow_limit: int
    nameless: bool  # no line of code was recorded
    times: tuple[TimeRow, ...]
    totals: tuple[tuple[str, int], ...]  # since the pool was made


@dataclass(frozen=True, kw_only=True)
class PoolCard:
    """One alias."""

    panel: Panel
    state: PoolState
    badge: str
    colour: str
    topic: str  # of the guide, about the state; "" if there is none
    error: str
    note: str
    live: LiveCard | None
    settings: tuple[tuple[Setting, Value], ...]  # and what is in effect, where that is another one
    differs: bool  # a setting is not in effect


@dataclass(frozen=True, kw_only=True)
class DatabaseCard:
    """One database, and everybody who is connected to it."""

    database: Database
    badge: str
    colour: str
    label: str
    filled: float
    project: str
    processes: tuple[tuple[str, Process], ...]  # of the project, with their names


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything on the page, from its top to its bottom."""

    pid: int  # of the process that is shown
    headline: str  # for the title of the window
    troubles: tuple[Trouble, ...]
    pools: tuple[PoolCard, ...]
    databases: tuple[DatabaseCard, ...]
    rows: tuple[Row, ...]  # of all processes of this machine
    findings: tuple[Finding, ...]


def page(overview: Overview, failure: Failure | None) -> Page:
    """Word the facts. `failure`: why the visitor was not looked up."""
    troubles = diagnose(overview, failure)
    return Page(
        pid=overview.pid,
        headline=_headline(troubles),
        troubles=troubles,
        pools=tuple(map(_pool_card, overview.panels)),
        databases=tuple(map(_database_card, overview.databases)),
        rows=overview.rows,
        findings=overview.findings,
    )


def _headline(troubles: tuple[Trouble, ...]) -> str:
    if not troubles:
        return "OK"
    more = f" (+{len(troubles) - 1})" if len(troubles) > 1 else ""
    return f"\N{WARNING SIGN} {troubles[0].subject}: {troubles[0].short}{more}"


def _pool_card(panel: Panel) -> PoolCard:
    state = state_of(panel)
    badge, colour = BADGES[state]
    if state == "failed" and isinstance(panel.server, Failure):
        badge = panel.server.problem
    settings = tuple(_settings(panel)) if panel.configured.vendor == "postgresql" else ()
    return PoolCard(
        panel=panel,
        state=state,
        badge=badge,
        colour=colour,
        topic=GUIDE.get(state, ""),
        error=_error(panel),
        note=_note(panel) if panel.live is None else "",
        live=_live_card(panel.live) if panel.live else None,
        settings=settings,
        differs=any(in_effect is not None for _, in_effect in settings),
    )


def _error(panel: Panel) -> str:
    if panel.configured.error:
        return f"The engine cannot be loaded: {panel.configured.error}"
    for failure in (panel.active, panel.server):
        if isinstance(failure, Failure):
            return f"{failure.cause} {failure.hint}"
    return ""


def _note(panel: Panel) -> str:
    configured, active = panel.configured, panel.active
    if isinstance(active, Active) and active.opened:
        return (
            f"{counted(active.connections, 'connection')}, {active.idle} of them idle;"
            f" {counted(active.waiting, 'request')} waiting."
            f" A {active.pool_class} reports no more than that."
        )
    if isinstance(active, Active):
        return "Nothing in this process has used this pool yet."
    if configured.error or isinstance(active, Failure):
        return ""
    if configured.vendor != "postgresql":
        return "This is not PostgreSQL, so there is no pool to show."
    unknown = "Only the process that has this pool can see it."  # Django's own
    return facts_wording.WITHOUT_POOL.get(configured.mode, unknown)


def _live_card(live: Live) -> LiveCard:
    now = live.now
    return LiveCard(
        live=live,
        label=f"{now.in_use} in use, {now.idle} idle and {now.opening} being opened, of "
        f"{now.limit} connections at most",
        gauge=charts.gauge(now),
        charts=charts.charts(live.past, now),
        servers=_servers(now.servers),
        overflow_limit=now.limit - now.size,
        nameless=any(group.where is None for group in live.holders),
        times=tuple(_time_rows(live.past)),
        totals=tuple((metric.label, getattr(now, name)) for name, metric in COUNTERS.items()),
    )


def _servers(servers: Iterable[ServerInUse]) -> str:
    """How many connections lead to which server."""
    return "; ".join(
        f"{counted(each.connections, 'connection')} to {printable(each.address)}"
        + ("" if each.role == Role.UNKNOWN.value else f", {each.role}")
        + ("" if each.wanted else " (not wanted: replaced soon)")
        for each in servers
        if each.address  # else it is closed
    )


def _time_rows(past: Past) -> Iterable[TimeRow]:
    at_once = max(past.checkouts - past.waits.count, 0)  # they found an idle connection
    rows: tuple[tuple[str, Distribution, int], ...] = (
        ("wait for a connection", past.waits, at_once),
        ("use of a connection", past.uses, 0),
        ("opening a connection", past.creates, 0),
    )
    for name, timed, more in rows:
        p50, p95, p99 = (_time(percentile(timed, share, more)) for share in (0.5, 0.95, 0.99))
        yield TimeRow(name, amount(timed.count + more), p50, p95, p99)


def _time(seconds: float | None) -> str:
    return "0" if seconds == 0 else duration(seconds)


def _settings(panel: Panel) -> Iterable[tuple[Setting, Value]]:
    active = panel.active.settings if isinstance(panel.active, Active) else {}
    for setting in panel.configured.settings:
        in_effect = active.get(setting.field)
        yield setting, None if in_effect == setting.value else in_effect


def _database_card(database: Database) -> DatabaseCard:
    limit, blocked = database.allowance, database.fleet.blocked
    full = database.in_use >= limit.connections
    badge = "no connection left" if full else f"{len(blocked)} blocked" if blocked else ""
    return DatabaseCard(
        database=database,
        badge=badge,
        colour="failed" if full else "busy",
        label=f"{counted(database.in_use, 'connection')} open; {limit.why}",
        filled=charts.WIDTH * min(database.in_use / max(limit.connections, 1), 1.0),
        project=printable(database.project),
        processes=tuple(
            (f"{process.host}:{process.pid}", process)
            for process in database.fleet.processes
            if process.application == database.project
        ),
    )
