"""What is wrong now, in one line each: the top of the page, and the state of each pool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from abs_orm_app.config.printable import printable
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.failure import Failure
from abs_orm_app.integrations.admin_page.history import is_exhausted
from abs_orm_app.integrations.admin_page.holders import Group
from abs_orm_app.integrations.admin_page.overview import Database, Live, Overview, Panel
from abs_orm_app.integrations.admin_page.wording import counted, duration, place

State = Literal[
    "ok", "overflow", "waiting", "exhausted", "unreachable", "broken", "unused", "stock", "none"
]

RECENT = 60.0  # seconds for which a checkout that timed out counts as now


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong now."""

    subject: str  # an alias, or a database
    short: str  # for the title of the browser's window
    text: str


def state_of(panel: Panel) -> State:
    """The state of one alias, the gravest first."""
    if panel.configured.error or isinstance(panel.active, Failure):
        return "broken"
    if isinstance(panel.server, Failure):
        return "unreachable"
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
    """Everything that is wrong now; empty if nothing is.

    `failure`: why the visitor of the page could not be looked up.
    """
    return (
        *(_of_visitor(failure) if failure else ()),
        *(trouble for panel in overview.panels for trouble in _of_panel(panel)),
        *(trouble for database in overview.databases for trouble in _of_database(database)),
    )


def _of_visitor(failure: Failure) -> Iterable[Trouble]:
    text = (
        f"your session could not be looked up. {failure.cause} {failure.hint} You see this page"
        " because this browser was let in during the last five minutes."
    )
    yield Trouble("login", "no answer", text)


def _of_panel(panel: Panel) -> Iterable[Trouble]:
    alias, live = panel.configured.alias, panel.live
    if panel.configured.error:
        yield Trouble(alias, "broken", f"the engine cannot be loaded: {panel.configured.error}")
    elif isinstance(panel.active, Failure):
        yield Trouble(alias, "broken", f"the pool cannot be built. {panel.active.cause}")
    if isinstance(panel.server, Failure):
        text = f"the database does not answer. {panel.server.cause} {panel.server.hint}"
        yield Trouble(alias, "no answer", text)
    if live is None:
        if isinstance(panel.active, Active) and panel.active.waiting:
            text = f"{counted(panel.active.waiting, 'request')} wait for a connection."
            yield Trouble(alias, "requests wait", text)
        return
    if live.now.waiting:
        yield _waiting(alias, live)
    if late := live.past.timeouts(RECENT):
        text = f"{counted(late, 'request')} got no connection in time in the last minute."
        yield Trouble(alias, "timeouts", text)


def _waiting(alias: str, live: Live) -> Trouble:
    wait = "waits" if live.now.waiting == 1 else "wait"
    waiting = f"{counted(live.now.waiting, 'request')} {wait} for a connection"
    if live.past.longest_wait is not None and live.past.longest_wait >= 1:
        whose = "" if live.now.waiting == 1 else "the longest "
        waiting += f", {whose}for at least {duration(live.past.longest_wait)}"
    if not is_exhausted(live.now):
        return Trouble(alias, "requests wait", f"{waiting}; more connections are being opened.")
    exhausted = "exhausted"
    if live.past.exhausted:
        exhausted += f" for {duration(live.past.exhausted)}"
    holders = f"; {_most_hold(live)}" if live.holders else ""
    return Trouble(alias, "exhausted", f"{exhausted}; {waiting}{holders}.")


def _most_hold(live: Live) -> str:
    """As in "12 of 12 connections are held by GET /slow/, taken at shop/views.py:32 in slow"."""
    most, every = live.holders[0], sum(group.count for group in live.holders)
    verb = "is" if most.count == 1 else "are"
    return f"{most.count} of {counted(every, 'connection')} {verb} held by {holder_name(most)}" + (
        f", taken at {place(most.where)}" if most.where else ""
    )


def holder_name(group: Group) -> str:
    """What holds the connections of a group."""
    if group.request:
        return group.request.label
    return f"thread {group.thread}" if group.thread else "several threads"


def _of_database(database: Database) -> Iterable[Trouble]:
    name = f"database {printable(database.server.database)}"
    limit = database.allowance
    if database.in_use >= limit.connections:
        text = f"all connections that there may be are open: {limit.why}."
        yield Trouble(name, "no connection left", text)
    if blocked := database.fleet.blocked:
        verb = "waits" if len(blocked) == 1 else "wait"
        text = f"{counted(len(blocked), 'session')} {verb} for a lock"
        longest = blocked[0]
        if longest.seconds is not None:
            text += f", the longest for {duration(longest.seconds)}"
        pids = [str(blocker.pid) for blocker in longest.blockers]
        if pids:
            text += f"; it is blocked by server process {', '.join(pids)}"
        yield Trouble(name, "blocked", f"{text}.")
