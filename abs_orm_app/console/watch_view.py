"""What is watched, as a picture for a terminal that is kept up to date until q or Ctrl-C."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from select import select
from threading import Event, Thread

from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from abs_orm_app.console.watch import Look, Watched, watch
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.sessions import Blocked, Session

WIDTH = 80  # of what is no terminal
BAR = 40  # cells
REDRAW = 0.5  # seconds
MOST_BLOCKED = 3  # of which each has two rows


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What is drawn with."""

    full: str
    empty: str
    sparks: str  # from nothing to all
    overflow: OverflowMethod  # of what is too long; rich's "ellipsis" is one character


FINE = Signs(full="█", empty="░", sparks="▁▂▃▄▅▆▇█", overflow="ellipsis")
PLAIN = Signs(full="#", empty=".", sparks="_.-=+*%#", overflow="crop")


def once(database: Configured, encoding: str | None) -> tuple[str, bool]:
    """The picture as plain text, and whether the server answered."""
    with closing(watch(database, 0.0, Event())) as looks:
        watched = next(looks)
    console = Console(file=StringIO(), width=WIDTH, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(picture(database, watched, signs=_signs(encoding)))
    lines = (line.rstrip() for line in captured.get().splitlines())
    return "\n".join(lines), watched.failure is None


def live(database: Configured, interval: float, *, no_color: bool = False) -> None:
    """Show the picture on the terminal until somebody quits, whether the server answers or not.

    Raises what ended the looks, if it is nothing that the database or its network did.
    """
    console = Console(no_color=no_color, force_terminal=True)
    over = Event()
    newest: list[Watched | None] = [None]
    failed: Future[None] = Future()

    def look() -> None:
        try:
            with closing(watch(database, interval, over)) as looks:
                for newest[0] in looks:
                    pass
        except BaseException as error:  # it is raised where the picture is drawn
            failed.set_exception(error)

    Thread(target=look, name="check_pool watch", daemon=True).start()
    hint = f"every {interval:g} s; q to quit"
    signs = _signs(console.encoding)
    with (
        suppress(KeyboardInterrupt),  # Ctrl-C is the other way to quit
        _keys() as quits,
        Live(console=console, screen=True, auto_refresh=False) as screen,
    ):
        while True:
            if failed.done():
                failed.result()
            drawn = picture(database, newest[0], hint, console.height, signs)
            screen.update(drawn, refresh=True)
            if quits(REDRAW if newest[0] else REDRAW / 10):
                break
    over.set()


def _signs(encoding: str | None) -> Signs:
    return FINE if (encoding or "utf-8").lower().startswith("utf") else PLAIN


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Give a function that waits so many seconds for q, and says whether it came."""
    if not sys.stdin.isatty():
        yield Event().wait  # which nobody sets
        return
    import termios  # only where there is a terminal: Windows has no such module
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)  # keys come at once, and Ctrl-C still interrupts
    try:
        yield _quits
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quits(seconds: float) -> bool:
    ready, _, _ = select([sys.stdin], [], [], seconds)
    if not ready:
        return False
    keys = os.read(sys.stdin.fileno(), 1024)
    return not keys or b"q" in keys.lower()  # no keys: the terminal is gone


# The picture


def picture(
    database: Configured,
    watched: Watched | None,
    hint: str = "",
    height: int | None = None,
    signs: Signs = FINE,
) -> RenderableType:
    """Draw it in `height` lines at most; None: as many as it takes."""
    if watched is None:
        return Text(f"Connecting to {database.address} ...")
    top = [_head(database, watched, hint, signs), *_trouble(watched)]
    if watched.last is None:
        return Group(*top)
    last = watched.last
    top += [*_usage(last, watched.shares, signs), Text()]
    blocked = _blocked(last.fleet.blocked, signs)
    room = None if height is None else max(height - len(top) - len(blocked) - 3, 1)
    return Group(*top, _groups(last, room, signs), *blocked)


def _head(database: Configured, watched: Watched, hint: str, signs: Signs) -> RenderableType:
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True, overflow=signs.overflow, ratio=1)
    head.add_column(no_wrap=True, justify="right")
    at = f"{watched.last.at:%H:%M:%S}" if watched.last else ""
    title = Text(f"{database.alias}: {database.address}", style="bold")
    head.add_row(title, Text("  ".join(filter(None, (at, hint))), style="dim"))
    return head


def _trouble(watched: Watched) -> list[RenderableType]:
    if watched.failure is None or watched.failing_since is None:
        return []
    seconds = (datetime.now() - watched.failing_since).total_seconds()
    since = f" for {_time(seconds)}" if seconds >= 1 else ""
    then = " Below is what it said last." if watched.last else ""
    words = f"No answer{since}: {watched.failure.cause} {watched.failure.hint}{then}"
    return [Text(line, style="bold red") for line in textwrap.wrap(words, WIDTH)]


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
    """The number, and for how long the oldest has been so."""
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


def _who(session: Session) -> str:
    name = "@".join(filter(None, (session.application, session.host)))
    return f"{session.pid} {name}".rstrip() if session.pid else "a prepared transaction"


def _doing(session: Session) -> str:
    if session.state is None or session.seconds is None:
        return ""
    return f", {session.state} for {_time(session.seconds)}"


def _time(seconds: float) -> str:
    """In four characters, up to a hundred days."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
