"""What a thread is doing, in the project's words: the request, the task or the command.

A checkout records nothing for this; it is read from the thread's stack when a report needs it. A
greenlet, or a thread that has left its request behind, is shown by its thread's name instead.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, partial
from types import FrameType
from typing import Any

import asgiref
import django
from django.http import HttpRequest

_HANDLERS = (
    os.path.join(next(iter(django.__path__)), "core", "handlers", ""),
    os.path.join(next(iter(asgiref.__path__)), ""),
)


@dataclass(frozen=True)
class Request:
    """What a thread is serving."""

    method: str  # "task" and "command" for those
    route: str  # of the URLconf, without the values in it; "" before it is known; a task's name
    view: str = ""  # "shop.views.detail"; "" before it is known

    @property
    def label(self) -> str:
        """For example "GET /orders/<int:pk>/", "task shop.tasks.send", "command import_orders"."""
        if self.method in ("task", "command"):
            return f"{self.method} {self.route}"
        if not self.route:
            return f"{self.method} (no view yet)"
        return f"{self.method} {self.route if self.route.startswith('^') else '/' + self.route}"


def requests_of(threads: Collection[str]) -> dict[str, Request]:
    """Return what the threads with these names are serving, without those that serve nothing."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return {}  # without the GIL, another thread's frames cannot be read safely
    every = threading.enumerate()
    names = Counter(thread.name for thread in every)
    frames = sys._current_frames()
    found = {}
    for thread in every:
        if thread.name in threads and names[thread.name] == 1:
            request = _served_on(frames.get(thread.ident or 0))
            if request is None and thread is threading.main_thread():
                request = _command()
            if request is not None:
                found[thread.name] = request
    frames.clear()  # else this frame would be in it, and keep itself alive
    return found


def _served_on(frame: FrameType | None) -> Request | None:
    """Return the outermost request or task on a stack: a view may make others, as Django's test
    client does.

    Only variables of Django's handlers and of asgiref are read. Reading those of another frame
    would keep their values alive, such as a connection that the project has dropped.
    """
    found = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_HANDLERS):
            for value in _values(frame):
                # By its type: isinstance() would evaluate a lazy object, such as request.user.
                if issubclass(type(value), HttpRequest):
                    found = _describe(value)
        elif code.co_name == "trace_task" and "celery" in code.co_filename:
            found = Request("task", str(getattr(frame.f_locals.get("task"), "name", "")))
        frame = frame.f_back
    return found


def _values(frame: FrameType) -> Iterator[Any]:
    """Yield the variables of a frame, and the arguments of what asgiref is about to call."""
    for value in frame.f_locals.values():
        yield value
        for each in value if type(value) is tuple else (value,):
            if type(each) is partial:
                yield from each.args


@cache
def _command() -> Request | None:
    """Return the command that this process runs, if it is one of Django's."""
    if len(sys.argv) > 1 and os.path.basename(sys.argv[0]) in ("manage.py", "django-admin"):
        return Request("command", sys.argv[1])
    return None


def _describe(request: HttpRequest) -> Request:
    match = request.resolver_match
    return Request(
        method=request.method or "",
        route=match.route if match else "",
        view=_name_of(match.func) if match else "",
    )


def _name_of(view: Any) -> str:
    function = getattr(view, "view_class", view)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}.{name}"
