"""Diagnoses what is wrong now: one line each for the top of the page, and each pool's state."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from abs_orm_app.config.texts import counted, printable
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.sessions import Fleet
from abs_orm_app.facts.wording import sessions_in_trouble, who_is_connected, writes_fail
from abs_orm_app.integrations.admin_page.history import is_exhausted
from abs_orm_app.integrations.admin_page.live import HolderGroup, Live
from abs_orm_app.integrations.admin_page.neighbours import troubles
from abs_orm_app.integrations.admin_page.overview import Database, Overview, Panel
from abs_orm_app.integrations.admin_page.wording import duration, place
from abs_orm_app.pool.server_errors import FULL

PoolState = Literal[
    "ok", "overflow", "waiting", "exhausted", "failed", "read-only", "broken", "unused", "stock",
    "none",
]  # fmt: skip

RECENT = 60.0  # seconds for which a timed-out checkout counts as current


@dataclass(frozen=True)
class Trouble:
    subject: str  # an alias, or a database
    short: str  # for the browser window's title
    text: str


def state_of(panel: Panel) -> PoolState:
    """Return the most severe state that applies to an alias."""
    if panel.configured.error or isinstance(panel.active, Failure):
        return "broken"
    if _read_only(panel):
        return "read-only"
    if isinstance(panel.server, Failure) and not serves(panel):
        return "failed"
    if panel.live is None:
        if not isinstance(panel.active, Active):
            return "none"
        return "stock" if panel.active.opened else "unused"
    now = panel.live.now
    if is_exhausted(now):
        return "exhausted"
    if now.waiting:
        return "waiting"
    return "overflow" if now.in_use > now.size else "ok"


def diagnose(overview: Overview, failure: Failure | None = None) -> tuple[Trouble, ...]:
    """Return everything that is wrong now. `failure`: why the visitor could not be looked up."""
    fleets = {alias: each.fleet for each in overview.databases for alias in each.aliases}
    of_aliases = [
        trouble
        for panel in overview.panels
        for trouble in _of_panel(panel, fleets.get(panel.configured.alias))
    ]
    said = " ".join(trouble.text for trouble in of_aliases)
    of_databases = [
        trouble
        for database in overview.databases
        for trouble in _of_database(database)
        if trouble.text not in said
    ]
    rows = [row for row in overview.rows if row.pid != overview.pid]  # of the other processes
    of_others = [Trouble(*each) for each in troubles(rows) if each[1] not in said]
    of_visitor = _of_visitor(failure, said) if failure else ()
    return (*of_aliases, *of_databases, *of_others, *of_visitor)


def serves(panel: Panel) -> bool:
    """Return True if the server only refuses new connections, and those of the pool suffice."""
    live, server = panel.live, panel.server
    return bool(
        isinstance(server, Failure)
        and server.problem == FULL
        and
        live and live.now.idle + live.now.in_use and not live.now.waiting
        and not live.past.failures(RECENT)
    )  # fmt: skip


def _read_only(panel: Panel) -> str:
    if panel.live and panel.live.now.cause and panel.live.now.cause.name == "read-only":
        return panel.live.now.cause.text
    if isinstance(panel.server, ServerFacts):
        return writes_fail(panel.configured, panel.server)
    return ""


def _of_visitor(failure: Failure, said: str) -> Iterable[Trouble]:
    why = "" if failure.cause in said else f" {failure.cause} {failure.hint}"
    text = (
        f"your session could not be looked up.{why} You see this page because this browser was let"
        " in during the last five minutes."
    )
    yield Trouble("login", "not looked up", text)


def _of_panel(panel: Panel, fleet: Fleet | None) -> Iterable[Trouble]:
    alias, live = panel.configured.alias, panel.live
    short, text = _cause(panel, fleet)
    waiting = panel.active.waiting if isinstance(panel.active, Active) else 0
    if live and live.now.waiting:
        text += f" {_waiting(live)}"
    elif waiting and not live:
        short = short or "requests wait"
        text += f" {counted(waiting, 'request')} wait for a connection."
    if live and (late := live.past.failures(RECENT)):
        short = short or "requests failed"
        text += f" {counted(late, 'request')} failed to get a connection in the last minute."
    if text:
        yield Trouble(alias, short, text.strip())


def _cause(panel: Panel, fleet: Fleet | None) -> tuple[str, str]:
    """Return what is wrong with an alias, as a few words and a sentence; "" twice if nothing is."""
    if panel.configured.error:
        return "broken", f"the engine cannot be loaded: {panel.configured.error}"
    if isinstance(panel.active, Failure):
        return "broken", f"the pool cannot be built. {panel.active.cause}"
    if text := _read_only(panel):
        return "writes fail", text
    if isinstance(panel.server, Failure):
        problem = panel.server.problem
        short = f"{problem}, but the pool serves" if serves(panel) else problem
        return short, f"{short}. {panel.server.cause} {panel.server.hint}"
    if panel.live and panel.live.now.waiting:
        return _why_waiting(panel.live, fleet)
    return "", ""


def _why_waiting(live: Live, fleet: Fleet | None) -> tuple[str, str]:
    cause = live.now.cause
    if cause is None or not is_exhausted(live.now):
        return "requests wait", "more connections are being opened."
    if cause.name == "slow or locked":
        # Statements are running, so a session that is idle in a transaction is not the cause.
        seen = sessions_in_trouble(replace(fleet, forgotten=None)) if fleet else None
        text, line = seen or (cause.text, "")
        short = "waits for a lock" if fleet and fleet.blocked else "slow statements"
        return short, f"{text} To end it: {line}" if line else text
    short = cause.name if cause.name == "exhausted" else cause.problem
    return short, cause.text


def _waiting(live: Live) -> str:
    wait = "waits" if live.now.waiting == 1 else "wait"
    waiting = f"{counted(live.now.waiting, 'request')} {wait} for a connection"
    if live.past.longest_wait is not None and live.past.longest_wait >= 1:
        whose = "" if live.now.waiting == 1 else "the longest "
        waiting += f", {whose}for at least {duration(live.past.longest_wait)}"
    holders = f"; {_most_hold(live)}" if live.holders else ""
    return f"{waiting}{holders}."


def _most_hold(live: Live) -> str:
    """As in "12 of 12 connections are held by GET /slow/, taken at shop/views.py:32 in slow"."""
    most, every = live.holders[0], sum(group.count for group in live.holders)
    verb = "is" if most.count == 1 else "are"
    return f"{most.count} of {counted(every, 'connection')} {verb} held by {holder_name(most)}" + (
        f", taken at {place(most.where)}" if most.where else ""
    )


def holder_name(group: HolderGroup) -> str:
    if group.request:
        return group.request.label
    return group.thread or "several threads"


def _of_database(database: Database) -> Iterable[Trouble]:
    name = f"database {printable(database.server.database)}"
    limit = database.allowance
    if limit.used >= limit.connections:
        text = (
            f"all allowed connections are open: {limit.why}. They belong to"
            f" {who_is_connected(database.fleet)}."
        )
        yield Trouble(name, "no connection left", text)
    if database.fleet.blocked and (seen := sessions_in_trouble(database.fleet)):
        text, line = seen
        yield Trouble(name, "blocked", f"{text} To end it: {line}" if line else text)
