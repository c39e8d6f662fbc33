"""What the templates show: the facts as texts, numbers as shapes, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from zlib import crc32

from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.guide import PAGES
from abs_orm_app.config.printable import printable
from abs_orm_app.facts import wording as facts_wording
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.databases import Setting
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.sessions import Blocked, Fleet, Session
from abs_orm_app.integrations.admin_page import charts
from abs_orm_app.integrations.admin_page.diagnosis import (
    State,
    Trouble,
    diagnose,
    holder_name,
    state_of,
)
from abs_orm_app.integrations.admin_page.history import Past
from abs_orm_app.integrations.admin_page.holders import Group
from abs_orm_app.integrations.admin_page.overview import Database, Live, Overview, Panel
from abs_orm_app.integrations.admin_page.percentiles import percentile
from abs_orm_app.integrations.admin_page.wording import (
    NONE,
    amount,
    counted,
    duration,
    place,
)
from abs_orm_app.pool.histogram import Distribution
from abs_orm_app.pool.placement import ServerInUse
from abs_orm_app.pool.roles import Role

Link = Callable[[str, str], str]  # from a page of the guide and an anchor to an address

MOST_PIDS = 20  # of a group of holders; of more, how many more there are

# What the badge of a state says, and its colour.
BADGES: dict[State, tuple[str, str]] = {
    "ok": ("OK", "ok"),
    "overflow": ("overflow in use", "busy"),
    "waiting": ("requests wait", "busy"),
    "exhausted": ("exhausted", "failed"),
    "unreachable": ("database does not answer", "failed"),
    "broken": ("cannot be used", "failed"),
    "unused": ("not used yet", ""),
    "stock": ("not our pool", ""),
    "none": ("no pool", ""),
}
# The entry of the guide about a state.
GUIDE = {"exhausted": ("troubleshooting", "pool-exhausted")}


@dataclass(frozen=True)
class Part:
    """A rectangle of a gauge."""

    kind: str
    x: str
    width: str


@dataclass(frozen=True)
class HolderRow:
    """The connections that one view holds from one line of code."""

    key: str  # the same in each refresh
    count: int
    name: str
    view: str
    where: str
    pins: str
    longest: str
    pids: str


@dataclass(frozen=True)
class TimeRow:
    """What was timed in the last five minutes."""

    name: str
    count: str
    p50: str
    p95: str
    p99: str


@dataclass(frozen=True)
class SettingRow:
    name: str
    value: str
    in_effect: str  # "" where it is as configured
    source: str
    became: str


@dataclass(frozen=True, kw_only=True)
class LiveCard:
    """The pool of one alias in this process."""

    label: str  # of the gauge, for those who do not see it
    parts: tuple[Part, ...]
    mark: str
    in_use: str
    idle: str
    opening: str
    overflow: str
    overflow_limit: str
    limit: str
    size: str
    waiting: str
    servers: str
    waits: bool
    longest_wait: str
    charts: tuple[charts.Chart, ...]
    holders: tuple[HolderRow, ...]
    nameless: bool  # no line of code was recorded
    times: tuple[TimeRow, ...]
    covered: str
    totals: tuple[tuple[str, str], ...]  # since the pool was made


@dataclass(frozen=True, kw_only=True)
class PoolCard:
    """One alias."""

    alias: str
    address: str
    state: State
    badge: str
    colour: str
    badge_url: str
    error: str
    note: str
    live: LiveCard | None
    settings: tuple[SettingRow, ...]
    differs: bool  # a setting is not in effect


@dataclass(frozen=True)
class SessionRow:
    key: str
    application: str
    host: str
    processes: str
    sessions: str
    active: str
    idle: str
    in_transaction: str
    longest_query: str
    longest_transaction: str


@dataclass(frozen=True)
class ProcessRow:
    key: str
    name: str
    is_this: bool
    sessions: str
    active: str
    idle: str
    in_transaction: str


@dataclass(frozen=True)
class BlockedRow:
    seconds: str
    session: str
    blockers: str


@dataclass(frozen=True, kw_only=True)
class DatabaseCard:
    """One database, and everybody who is connected to it."""

    key: str
    name: str
    server: str
    badge: str
    colour: str
    label: str
    filled: str
    project: str
    processes: tuple[ProcessRow, ...]
    sessions: tuple[SessionRow, ...]
    blocked: tuple[BlockedRow, ...]


@dataclass(frozen=True)
class FindingRow:
    level: str
    message: str
    remedy: str
    fix: str  # one line to copy, or ""
    id: str
    key: str
    url: str
    alias: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything on the page, from its top to its bottom."""

    headline: str  # for the title of the window
    troubles: tuple[Trouble, ...]
    pools: tuple[PoolCard, ...]
    databases: tuple[DatabaseCard, ...]
    findings: tuple[FindingRow, ...]


def page(overview: Overview, process: str, link: Link, failure: Failure | None) -> Page:
    """Word the facts.

    `process`: the one that answers, as HOST:PID. `failure`: why the visitor was not looked up.
    """
    troubles = diagnose(overview, failure)
    return Page(
        headline=_headline(troubles),
        troubles=troubles,
        pools=tuple(_pool_card(panel, link) for panel in overview.panels),
        databases=tuple(_database_card(database, process) for database in overview.databases),
        findings=tuple(_finding_row(finding, link) for finding in overview.findings),
    )


def _headline(troubles: tuple[Trouble, ...]) -> str:
    if not troubles:
        return "OK"
    more = f" (+{len(troubles) - 1})" if len(troubles) > 1 else ""
    return f"\N{WARNING SIGN} {troubles[0].subject}: {troubles[0].short}{more}"


def _pool_card(panel: Panel, link: Link) -> PoolCard:
    configured, state = panel.configured, state_of(panel)
    badge, colour = BADGES[state]
    settings = tuple(_setting_rows(panel)) if configured.vendor == "postgresql" else ()
    return PoolCard(
        alias=configured.alias,
        address=printable(configured.address),
        state=state,
        badge=badge,
        colour=colour,
        badge_url=link(*GUIDE[state]) if state in GUIDE else "",
        error=_error(panel),
        note=_note(panel) if panel.live is None else "",
        live=_live_card(panel.live) if panel.live else None,
        settings=settings,
        differs=any(row.in_effect for row in settings),
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
    return facts_wording.WITHOUT_POOL.get(configured.mode, "No pool.")


def _live_card(live: Live) -> LiveCard:
    now, past = live.now, live.past
    gauge = charts.gauge(now)
    return LiveCard(
        label=f"{now.in_use} in use, {now.idle} idle and {now.opening} being opened, of "
        f"{now.limit} connections at most",
        parts=tuple(Part(s.kind, f"{s.x:.2f}", f"{s.width:.2f}") for s in gauge.segments),
        mark=f"{gauge.mark:.2f}",
        in_use=amount(now.in_use),
        idle=amount(now.idle),
        opening=amount(now.opening),
        overflow=amount(now.overflow),
        overflow_limit=amount(now.limit - now.size),
        limit=amount(now.limit),
        size=amount(now.size),
        waiting=amount(now.waiting),
        servers=_servers(now.servers),
        waits=bool(now.waiting),
        longest_wait=duration(past.longest_wait) if past.longest_wait else "",
        charts=charts.charts(past, now),
        holders=tuple(map(_holder_row, live.holders)),
        nameless=any(group.where is None for group in live.holders),
        times=tuple(_time_rows(past)),
        covered=duration(past.covered),
        totals=(
            ("checkouts", amount(now.checkouts)),
            ("of these waited", amount(now.queued)),
            ("timed out", amount(now.timeouts)),
            ("failed, with those", amount(now.errors)),
            ("connects", amount(now.connects)),
            ("of these failed", amount(now.connect_errors)),
            ("connections stale", amount(now.stale)),
            ("connections leaked", amount(now.leaked)),
            ("connections expired", amount(now.expired)),
            ("sessions cleaned", amount(now.cleaned)),
            ("on the wrong server", amount(now.misplaced)),
        ),
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


def _key(*texts: str) -> str:
    """What may be part of an id, from texts that may not."""
    return f"{crc32(chr(0).join(texts).encode()):08x}"


def _holder_row(group: Group) -> HolderRow:
    pids = ", ".join(map(str, group.pids[:MOST_PIDS]))
    more = group.count - MOST_PIDS
    return HolderRow(
        key=_key(holder_name(group), str(group.where)),
        count=group.count,
        name=holder_name(group),
        view=group.request.view if group.request else "",
        where=place(group.where) if group.where else NONE,
        pins=_pins_in_words(group),
        longest=duration(group.longest),
        pids=f"{pids} and {more} more" if more > 0 else pids,
    )


def _pins_in_words(group: Group) -> str:
    """As in "SET search_path at shop/middleware.py:31 in __call__", or "8: nothing; 4: ..."."""
    pins = [(place(text) or NONE, count) for text, count in group.pins]
    return pins[0][0] if len(pins) == 1 else "; ".join(f"{count}: {text}" for text, count in pins)


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


def _setting_rows(panel: Panel) -> Iterable[SettingRow]:
    for setting in panel.configured.settings:
        yield SettingRow(
            name=setting.name,
            value=facts_wording.format_value(setting.field, setting.value),
            in_effect=_in_effect(panel, setting),
            source=setting.source,
            became=facts_wording.option_in_words(setting, panel.configured.mode),
        )


def _in_effect(panel: Panel, setting: Setting) -> str:
    """What the pool has where that is not what is configured."""
    actual = getattr(panel.active, setting.field, None)
    same = actual in (None, setting.value)
    return "" if same else facts_wording.format_value(setting.field, actual)


def _database_card(database: Database, process: str) -> DatabaseCard:
    server, limit, blocked = database.server, database.allowance, database.fleet.blocked
    full = database.in_use >= limit.connections
    badge = "no connection left" if full else f"{len(blocked)} blocked" if blocked else ""
    aliases = ", ".join(database.aliases)
    return DatabaseCard(
        key=database.aliases[0],
        name=printable(server.database),
        server=f"PostgreSQL {printable(server.version)} at {printable(server.address)}, "
        f"{'alias' if len(database.aliases) == 1 else 'aliases'} {aliases}",
        badge=badge,
        colour="failed" if full else "busy",
        label=f"{counted(database.in_use, 'connection')} open; {limit.why}",
        filled=f"{charts.WIDTH * min(database.in_use / max(limit.connections, 1), 1.0):.2f}",
        project=printable(database.project),
        processes=tuple(_process_rows(database.fleet, database.project, process)),
        sessions=tuple(_session_rows(database.fleet)),
        blocked=tuple(map(_blocked_row, blocked)),
    )


def _process_rows(fleet: Fleet, project: str, this: str) -> Iterable[ProcessRow]:
    for process in fleet.processes:
        if process.application == project:
            name = printable(f"{process.host}:{process.pid}")
            yield ProcessRow(
                _key(name),
                name,
                name == this,
                amount(process.sessions),
                amount(process.active),
                amount(process.idle),
                amount(process.in_transaction),
            )


def _session_rows(fleet: Fleet) -> Iterable[SessionRow]:
    for group in fleet.groups:
        yield SessionRow(
            key=_key(group.application, group.host),
            application=printable(group.application) or "(no name)",
            host=printable(group.host) or NONE,
            processes=amount(group.processes),
            sessions=amount(group.sessions),
            active=amount(group.active),
            idle=amount(group.idle),
            in_transaction=amount(group.in_transaction),
            longest_query=duration(group.oldest_active),
            longest_transaction=duration(group.oldest_in_transaction),
        )


def _blocked_row(blocked: Blocked) -> BlockedRow:
    return BlockedRow(
        seconds=duration(blocked.seconds),
        session=_session_name(blocked.session),
        blockers="; ".join(
            _session_name(blocker)
            + (f", {blocker.state} for {duration(blocker.seconds)}" if blocker.state else "")
            for blocker in blocked.blockers
        ),
    )


def _session_name(session: Session) -> str:
    return printable(" ".join(filter(None, (str(session.pid), session.application, session.host))))


def _finding_row(finding: Finding, link: Link) -> FindingRow:
    name, _, anchor = finding.guide.removeprefix("docs/").partition(".md#")
    return FindingRow(
        level=facts_wording.LEVELS[finding.level].lower(),
        message=printable(finding.message),
        remedy=printable(finding.remedy),
        fix=finding.fix,
        id=finding.id,
        key=f"{finding.id}-of-{finding.alias or 'all'}",
        url=link(name, anchor) if name in PAGES else "",
        alias=finding.alias or "",
    )
