"""Which requests hold the connections of a pool, grouped by the view and the line of code.

A checkout records nothing for this: the request is found on the stack of the thread that holds the
connection, when somebody looks. A greenlet, and a thread that has left its request behind, are
named by their thread instead.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from django.http import HttpRequest

from abs_orm_app.pool.entry import Holder


@dataclass(frozen=True)
class Request:
    """What a thread is serving."""

    method: str
    route: str  # of the URLconf, without the values in it; "" before it is known
    view: str  # "shop.views.detail"; "" before it is known

    @property
    def label(self) -> str:
        """As in "GET /orders/<int:pk>/"."""
        if not self.route:
            return f"{self.method} (no view yet)"
        return f"{self.method} {self.route if self.route.startswith('^') else '/' + self.route}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Connections that the same view took at the same line."""

    request: Request | None
    thread: str  # "" if the request is known, or the threads are many
    where: str | None  # the line that took them, if DB_POOL_LEAK_SECONDS is set
    pins: tuple[tuple[str, int], ...]  # what needs how many of their sessions; "": not known
    longest: float  # seconds
    pids: tuple[int, ...]  # of the server's processes; the one held for longest first

    @property
    def count(self) -> int:
        return len(self.pids)


def group_holders(holders: Iterable[Holder], requests: dict[str, Request]) -> tuple[Group, ...]:
    """Group by request and line; the largest group first. `requests`: by the thread's name."""
    members: dict[tuple[Request | None, str | None], list[Holder]] = {}
    for holder in sorted(holders, key=lambda holder: -holder.seconds):
        members.setdefault((requests.get(holder.thread), holder.where), []).append(holder)
    groups = [
        Group(
            request=request,
            thread="" if request or len(group) > 1 else group[0].thread,
            where=where,
            pins=tuple(Counter(map(_pin_in_words, group)).most_common()),
            longest=group[0].seconds,
            pids=tuple(holder.pid for holder in group),
        )
        for (request, where), group in members.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.count, -group.longest)))


def _pin_in_words(holder: Holder) -> str:
    if holder.unused:
        return "nothing"
    return str(holder.pin) if holder.pin else ""


def requests_of(threads: Collection[str]) -> dict[str, Request]:
    """What the threads with these names are serving; those that serve nothing are left out."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return {}  # without the GIL, another thread's frames cannot be read safely
    every = threading.enumerate()
    names = Counter(thread.name for thread in every)
    frames = sys._current_frames()
    found = {
        thread.name: request
        for thread in every
        if thread.name in threads and names[thread.name] == 1
        if (frame := frames.get(thread.ident or 0)) and (request := _request_on(frame))
    }
    frames.clear()  # else this frame would be in it, and keep itself alive
    return found


def _request_on(frame: FrameType | None) -> Request | None:
    """The outermost request on a stack: a view may make others, as Django's test client does."""
    found = None
    while frame is not None:
        for value in frame.f_locals.values():
            # By its type: isinstance() would evaluate a lazy object, such as request.user.
            if issubclass(type(value), HttpRequest):
                found = value
        frame = frame.f_back
    return _describe(found) if found is not None else None


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
