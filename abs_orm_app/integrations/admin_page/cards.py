"""Prepares the facts for the templates: worded, and in the order of the page."""

from collections.abc import Iterable
from typing import Any

from abs_orm_app.config.texts import counted, printable
from abs_orm_app.facts import wording as facts_wording
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.databases import Setting, Value
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.snapshot import COUNTERS
from abs_orm_app.integrations.admin_page import charts
from abs_orm_app.integrations.admin_page.diagnosis import PoolState, Trouble, diagnose, state_of
from abs_orm_app.integrations.admin_page.history import Past, percentile
from abs_orm_app.integrations.admin_page.live import Live
from abs_orm_app.integrations.admin_page.overview import Database, Overview, Panel
from abs_orm_app.integrations.admin_page.wording import amount, duration
from abs_orm_app.pool.placement import ServerInUse
from abs_orm_app.pool.roles import Role

# The text and the colour of each state's badge.
BADGES: dict[PoolState, tuple[str, str]] = {
    "ok": ("OK", "ok"),
    "overflow": ("overflow in use", "busy"),
    "waiting": ("requests wait", "busy"),
    "exhausted": ("exhausted", "failed"),
    "failed": ("", "failed"),  # the server's problem
    "read-only": ("writes fail", "failed"),
    "broken": ("cannot be used", "failed"),
    "unused": ("not used yet", ""),
    "stock": ("not our pool", ""),
    "none": ("no pool", ""),
}
# The guide's entry on a state.
GUIDE = {"exhausted": "pool-exhausted", "read-only": "writes-go-to-a-standby"}


Card = dict[str, Any]  # the context of a template


def page(overview: Overview, failure: Failure | None) -> Card:
    """Word the facts. `failure`: why the visitor could not be looked up."""
    troubles = diagnose(overview, failure)
    return {
        "pid": overview.pid,  # of the process shown
        "headline": _headline(troubles),  # for the window's title
        "troubles": troubles,
        "pools": [_pool_card(panel) for panel in overview.panels],
        "databases": [_database_card(database) for database in overview.databases],
        "rows": overview.rows,
        "findings": overview.findings,
    }


def _headline(troubles: tuple[Trouble, ...]) -> str:
    if not troubles:
        return "OK"
    more = f" (+{len(troubles) - 1})" if len(troubles) > 1 else ""
    return f"\N{WARNING SIGN} {troubles[0].subject}: {troubles[0].short}{more}"


def _pool_card(panel: Panel) -> Card:
    state = state_of(panel)
    badge, colour = BADGES[state]
    if state == "failed" and isinstance(panel.server, Failure):
        badge = panel.server.problem
    settings = list(_settings(panel)) if panel.configured.vendor == "postgresql" else []
    return {
        "configured": panel.configured,
        "state": state,
        "badge": badge,
        "colour": colour,
        "topic": GUIDE.get(state, ""),
        "error": _error(panel),
        "note": _note(panel) if panel.live is None else "",
        "live": panel.live,
        "card": _live_card(panel.live) if panel.live else None,
        "settings": settings,  # each with the value in effect, if that differs
        "differs": any(in_effect is not None for _, in_effect in settings),
    }


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


def _live_card(live: Live) -> Card:
    now = live.now
    return {
        # For users who cannot see the gauge.
        "label": f"{now.in_use} in use, {now.idle} idle and {now.opening} being opened, of "
        f"{now.limit} connections at most",
        "gauge": charts.gauge(now),
        "charts": charts.charts(live.past, now),
        "servers": _servers(now.servers),
        "overflow_limit": now.limit - now.size,
        "nameless": any(group.where is None for group in live.holders),  # no line was recorded
        "times": list(_time_rows(live.past)),
        "totals": [(metric.label, getattr(now, name)) for name, metric in COUNTERS.items()],
    }


def _servers(servers: Iterable[ServerInUse]) -> str:
    return "; ".join(
        f"{counted(each.connections, 'connection')} to {printable(each.address)}"
        + ("" if each.role == Role.UNKNOWN.value else f", {each.role}")
        + ("" if each.wanted else " (not wanted: replaced soon)")
        for each in servers
        if each.address  # else it is closed
    )


def _time_rows(past: Past) -> Iterable[tuple[str, ...]]:
    """Yield a name, how many were timed in the last five minutes, and their percentiles."""
    at_once = max(past.checkouts - past.waits.count, 0)  # they found an idle connection
    for name, timed, more in (
        ("wait for a connection", past.waits, at_once),
        ("use of a connection", past.uses, 0),
        ("opening a connection", past.creates, 0),
    ):
        percentiles = (percentile(timed, share, more) for share in (0.5, 0.95, 0.99))
        times = ("0" if seconds == 0 else duration(seconds) for seconds in percentiles)
        yield name, amount(timed.count + more), *times


def _settings(panel: Panel) -> Iterable[tuple[Setting, Value]]:
    active = panel.active.settings if isinstance(panel.active, Active) else {}
    for setting in panel.configured.settings:
        in_effect = active.get(setting.field)
        yield setting, None if in_effect == setting.value else in_effect


def _database_card(database: Database) -> Card:
    limit, blocked = database.allowance, database.fleet.blocked
    full = limit.used >= limit.connections
    return {
        "database": database,
        "badge": "no connection left" if full else f"{len(blocked)} blocked" if blocked else "",
        "colour": "failed" if full else "busy",
        "label": f"{counted(limit.used, 'connection')} open; {limit.why}",
        "filled": charts.WIDTH * min(limit.used / max(limit.connections, 1), 1.0),
        "project": printable(database.project),
        "processes": [
            (f"{process.host}:{process.pid}", process)
            for process in database.fleet.processes
            if process.application == database.project
        ],
    }
