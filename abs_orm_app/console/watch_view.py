"""`check_pool --watch` on a terminal, redrawn until q or Ctrl-C, or once into a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from io import StringIO
from select import select
from threading import Event, Thread

from rich.console import Console
from rich.live import Live

from abs_orm_app.console.layout import terminal_width
from abs_orm_app.console.watch import Watched, watch
from abs_orm_app.console.watch_picture import FINE, PLAIN, Signs, picture
from abs_orm_app.facts.databases import Configured

REDRAW = 0.5  # seconds


def once(database: Configured, encoding: str | None) -> tuple[str, bool]:
    """The picture as plain text, and whether the server answered."""
    with closing(watch(database, 0.0, Event())) as looks:
        watched = next(looks)
    width = terminal_width()
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(picture(database, watched, (width, None), signs=_signs(encoding)))
    lines = (line.rstrip() for line in captured.get().splitlines())
    return "\n".join(lines), watched.failure is None


def live(database: Configured, interval: float, *, no_color: bool = False) -> None:
    """Show the picture on the terminal until q or Ctrl-C, whether the server answers or not.

    interval: seconds between two looks. Raises the exception that ended the looks, if it is not an
    error of the database or the network.
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
        except BaseException as error:  # raised again in the thread that draws
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
            drawn = picture(database, newest[0], (console.width, console.height), hint, signs)
            screen.update(drawn, refresh=True)
            if quits(REDRAW if newest[0] else REDRAW / 10):
                break
    over.set()


def _signs(encoding: str | None) -> Signs:
    return FINE if (encoding or "utf-8").lower().startswith("utf") else PLAIN


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Give a function that waits for q up to so many seconds, and returns whether it came."""
    if not sys.stdin.isatty():
        yield Event().wait  # without a keyboard, nothing sets this event
        return
    import termios  # imported here: Windows has no such module
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)  # no Enter is needed, and Ctrl-C still interrupts
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
