"""The picture that `check_pool --watch` draws."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from abs_orm_app.console.watch import Look, Watched
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.sessions import Blocked, Session

BAR = 40  # cells
MOST_BLOCKED = 3  # each has two rows


@dataclass(frozen=True, kw_only=True)
class Signs:
    """The characters to draw with."""

    full: str
    empty: str
    sparks: str  # from 0 to 100 %
    dot: str  # between two notes
    overflow: OverflowMethod  # of a text that is too long; rich's "ellipsis" is one character


FINE = Signs(full="█", empty="░", sparks="▁▂▃▄▅▆▇█", dot="·", overflow="ellipsis")
PLAIN = Signs(full="#", empty=".", sparks="_.-=+*%#", dot="/", overflow="crop")


def picture(
    database: Configured,
    watched: Watched | None,
    size: tuple[int, int | None],
    hint: str = "",
    signs: Signs = FINE,
) -> RenderableType:
    """Draw in a size of columns and lines at most; None: as many lines as it takes.

    watched: None before the first look.
    """
    if watched is None:
        return Text(f"Connecting to {database.address} ...")
    columns, height = size
    top = [_head(database, watched, hint, signs), *_trouble(watched, columns)]
    if watched.last is None:
        return Group(*top)
    last = watched.last
    top += [*_usage(last, watched.shares, signs), Text()]
    bottom = [*_blocked(last.fleet.blocked, signs), *_notes(last, signs)]
    room = None if height is None else max(height - len(top) - len(bottom) - 3, 1)
    return Group(*top, _groups(last, room, signs), *bottom)


def _head(database: Configured, watched: Watched, hint: str, signs: Signs) -> RenderableType:
    head = Table.grid(expand=True, padding=(0, 2))
    head.add_column(no_wrap=True, overflow=signs.overflow, ratio=1)
    head.add_column(no_wrap=True, justify="right")
    at = f"{watched.last.at:%H:%M:%S}" if watched.last else ""
    title = Text(f"{database.alias}: {database.address}", style="bold")
    head.add_row(title, Text("  ".join(filter(None, (at, hint))), style="dim"))
    return head


def _trouble(watched: Watched, columns: int) -> list[RenderableType]:
    if watched.failure is None or watched.failing_since is None:
        return []
    seconds = (datetime.now() - watched.failing_since).total_seconds()
    since = f" for {_time(seconds)}" if seconds >= 1 else ""
    then = " Below is its last answer." if watched.last else ""
    words = f"No answer{since}: {watched.failure.cause} {watched.failure.hint}{then}"
    return [Text(line, style="bold red") for line in textwrap.wrap(words, columns)]


def _usage(last: Look, shares: tuple[float, ...], signs: Signs) -> list[RenderableType]:
    limit, used = last.limit, last.used
    share = used / max(limit.connections, 1)
    style = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
    full = min(round(share * BAR), BAR)
    line = Text.assemble(
        (f"{used} of {limit.connections} ", f"bold {style}"),
        (signs.full * full, style),
        (signs.empty * (BAR - full), "dim"),
        f" {share:.0%}",
        no_wrap=True,
    )
    steps = len(signs.sparks) - 1
    drawn = "".join(signs.sparks[min(round(s * steps), steps)] for s in shares)
    return [
        line,
        Text(f"{limit.why}", style="dim", no_wrap=True, overflow=signs.overflow),
        Text.assemble((drawn, style), no_wrap=True),
    ]


def _groups(last: Look, room: int | None, signs: Signs) -> RenderableType:
    groups = last.fleet.groups
    table = Table(box=None, expand=True, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("application", no_wrap=True, overflow=signs.overflow, ratio=3)
    table.add_column("host", no_wrap=True, overflow=signs.overflow, ratio=2)
    for name in ("procs", "active", "idle", "in transaction", "all"):
        table.add_column(name, no_wrap=True, justify="right")
    shown = groups if room is None or len(groups) <= room else groups[: max(room - 1, 0)]
    for group in shown:
        table.add_row(
            Text(group.application or "(no name)"),
            Text(group.host or "-"),
            Text("-" if group.processes is None else str(group.processes)),
            _count(group.active, group.oldest_active, "green"),
            _count(group.idle, group.oldest_idle, ""),
            _count(group.in_transaction, group.oldest_in_transaction, "yellow"),
            Text(str(group.sessions)),
        )
    if hidden := groups[len(shown) :]:
        sessions = sum(group.sessions for group in hidden)
        table.add_row(Text(f"and {len(hidden)} more", style="dim"), *[""] * 5, str(sessions))
    return table


def _count(number: int, oldest: float | None, style: str) -> Text:
    """The number, and how long the oldest has been in that state."""
    age = "" if oldest is None else _time(oldest)
    return Text.assemble((str(number), style if number else "dim"), (f" {age:>4}", "dim"))


def _blocked(blocked: tuple[Blocked, ...], signs: Signs) -> list[RenderableType]:
    if not blocked:
        return []
    lines: list[RenderableType] = [Text(), Text(f"{len(blocked)} blocked", style="bold red")]
    for one in blocked[:MOST_BLOCKED]:
        waits = f" waits for {_time(one.seconds)}" if one.seconds is not None else ""
        behind = ", ".join(f"{_who(by)}{_doing(by)}" for by in one.blockers)
        lines += [
            Text(text, no_wrap=True, overflow=signs.overflow)
            for text in (f"{_who(one.session)}{waits or _doing(one.session)}", f"  behind {behind}")
        ]
    return lines


def _notes(last: Look, signs: Signs) -> list[RenderableType]:
    """What a sign in the table means, and how to end the first session that blocks others."""
    notes = []
    if any(group.unknown for group in last.fleet.groups):
        notes.append('"-": hidden from this role: needs pg_read_all_stats')
    if pid := next(_blocking_pids(last.fleet.blocked), None):
        notes.append(f"end one: SELECT pg_terminate_backend({pid})")
    if not notes:
        return []
    text = f" {signs.dot} ".join(notes)
    return [Text(text, style="dim", no_wrap=True, overflow=signs.overflow)]


def _blocking_pids(blocked: Iterable[Blocked]) -> Iterator[int]:
    """The server processes that block others; a prepared transaction has none."""
    return (by.pid for one in blocked for by in one.blockers if by.pid)


def _who(session: Session) -> str:
    name = "@".join(filter(None, (session.application, session.host)))
    return f"{session.pid} {name}".rstrip() if session.pid else "a prepared transaction"


def _doing(session: Session) -> str:
    if session.state is None or session.seconds is None:
        return ""
    return f", {session.state} for {_time(session.seconds)}"


def _time(seconds: float) -> str:
    """A time in four characters, up to a hundred days."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
