"""Finds out why requests get no connection or cannot write, and logs it.

A slow statement, a lock, a hung server and a missing one look the same in the queue. So the pool
probes the server, at the address of a connection, before a message says that it does not answer. A
probe opens no session, so it counts against no limit and needs no password.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from math import inf
from typing import Any

from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus

from abs_orm_app.pool import messages, threads
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.entry import IN_TRANSACTION, Entry
from abs_orm_app.pool.hosts import Place
from abs_orm_app.pool.liveness import ANSWERING, GONE, SILENT, reach
from abs_orm_app.pool.messages import Cause
from abs_orm_app.pool.placement import address_of
from abs_orm_app.pool.queue import copied
from abs_orm_app.pool.roles import Role
from abs_orm_app.pool.server_errors import SAYS_NOTHING

ASK_AFTER = 0.3  # seconds that a request waits before the server is probed
ASK_EVERY = 1.0  # seconds between two probes; `ASK_AGAIN` while it answers
ASK_AGAIN = 3.0
ANSWER_WITHIN = 1.0  # seconds for a probe; half of it after a connection attempt has timed out
FRESH = 5.0  # seconds for which a probe counts, and a fault while no request waits
TOLD_AFTER = 1.5  # seconds that a request waits before the log reports it
CHANGE_AFTER = 10.0  # seconds before it reports another cause of the same trouble, or the next one
OVER_AFTER = 3.0  # seconds without that cause before the log says that it is over
REMIND = 60.0  # seconds between two lines about the same cause


def cause_of(core: Core) -> Cause | None:
    """Return why requests wait, fail or cannot write now; None if they do not."""
    entries = list(core.entries)
    if Role.PRIMARY not in [entry.role for entry in entries]:
        for entry in entries:
            if entry.misplaced and entry.role in (Role.STANDBY, Role.READ_ONLY):
                return messages.read_only(address_of(entry.pgconn), entry.role.value)
    fault = core.fault or core.refusal
    if fault and (
        core.queue.waiters or len(entries) < max(core.min_size, 1) or monotonic() - fault.at < FRESH
    ):
        return messages.of_fault(fault)
    return why_waiting(core) if core.queue.waiters else None


def why_waiting(core: Core) -> Cause:
    """Return why requests wait although connecting has not failed."""
    in_use = core.in_use
    statuses = [entry.pgconn.transaction_status for entry in in_use]
    active = statuses.count(TransactionStatus.ACTIVE)
    at, found, where = core.reached
    if monotonic() - at > FRESH:
        found = ""
    if found in (SILENT, GONE) and (active or core.attempts):
        return messages.no_answer(where, silent=found == SILENT)
    if len(core.entries) < core.max_size:
        began = min((a.began for a in list(core.attempts)), default=inf)
        return messages.opening(monotonic() - began)
    if found == ANSWERING and 2 * active > len(in_use):
        return messages.slow_or_locked(core.max_size, active)
    return messages.exhausted(
        core.max_size,
        in_transaction=sum(status in IN_TRANSACTION for status in statuses),
        unused=core.count_pins()[1],
    )


def held_by(core: Core) -> str:
    """Describe which requests, tasks and commands hold the connections."""
    held = [core.holder_of(entry) for entry in core.in_use]
    labels = core.hooks.served_by({each.thread for each in held if not each.is_task})
    kinds = {True: "task", False: "thread"}
    return messages.held_by(
        labels.get(each.thread, f"{kinds[each.is_task]} {each.thread}") for each in held
    )


def ask_if_that_may_be_why(core: Core, now: float) -> None:
    """Probe the server in a thread, if requests may be waiting for it. Never waits."""
    every = ASK_AGAIN if core.reached[1] == ANSWERING else ASK_EVERY
    waiters = copied(core.queue.waiters)
    if not waiters or now - waiters[0].began < ASK_AFTER or now - core.asked_at < every:
        return
    if core.attempts or _active(core):
        core.asked_at = now
        with suppress(RuntimeError, MemoryError):  # there is no thread left
            threads.start(f"{core.name}-asker", ask, core)


def ask(core: Core) -> None:
    """Probe the server, at the addresses of connections that wait for it. Takes up to
    `ANSWER_WITHIN` seconds for each of at most three addresses.
    """
    targets: list[Any] = []
    for entry in _active(core):
        with suppress(OSError):  # already closed
            if (peer := entry.twin.getpeername()) not in targets:
                targets.append(peer)
    found, where = reached(targets or [place.target for place in core.places])
    if found:
        core.reached = (monotonic(), found, where)


def _active(core: Core) -> list[Entry]:
    """The connections that wait for the server's answer."""
    return [e for e in core.in_use if e.pgconn.transaction_status == TransactionStatus.ACTIVE]


def reached(targets: list[Any], within: float = ANSWER_WITHIN) -> tuple[str, str]:
    """Probe these addresses until one answers. Return the best result, and where; or "" twice."""
    best = ("", "")
    for target in [each for each in targets if each][:3]:
        found = reach(target, within)
        where = target if isinstance(target, str) else f"{target[0]}:{target[1]}"
        if found == ANSWERING:
            return found, where
        if not best[0] or found == SILENT:
            best = found, where
    return best


def located(error: BaseException, places: list[Place]) -> BaseException:
    """Return a connection timeout that also says where it happened and what a probe found there.

    Takes up to half a second for each of three places.
    """
    found, where = reached([place.target for place in places], ANSWER_WITHIN / 2)
    text = {
        SILENT: f"{where} {SAYS_NOTHING}",
        GONE: f"nothing accepts connections at {where}",
        ANSWERING: f"{where} answers now",
    }.get(found)
    if not text:
        return error
    first, line, rest = str(error).partition("\n")
    return ConnectionTimeout(f"{first}: {text}{line}{rest}")


class Spell:
    """Decides what is logged about a fault that may come and go. Any thread may call this."""

    def __init__(self) -> None:
        self._told: dict[float, object] = {}
        self._text = ""  # the last text that was logged, while the fault lasts

    def is_news(self, text: str) -> bool:
        """True if `text` is to be logged: one per `CHANGE_AFTER` seconds, and no repetition."""
        if text == self._text:
            return False
        period, mine = monotonic() // CHANGE_AFTER, object()
        if self._told.setdefault(period, mine) is not mine:
            return False
        for old in [each for each in list(self._told) if each < period]:
            self._told.pop(old, None)
        self._text = text
        return True

    def ends(self) -> bool:
        """Record the end of the fault; True if it is to be logged, because the fault was."""
        told, self._text = self._text, ""
        return bool(told)


class Story:
    """Logs the troubles of one pool: that one begins, that requests fail, a reminder with numbers
    each minute, and its end. For housekeeping.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cause: Cause | None = None
        self._by_fault = self._failing = False
        self._began = self._seen = self._said = 0.0
        self._served = 0  # `_serves()` when the cause was last seen
        self._before = self._last = (0, 0)

    def tend(self, now: float) -> float:
        """Log what is new; return when to run again (`monotonic`)."""
        core, told = self._core, self._cause
        if found := self._found(now):
            if told is None or (told.name != found.name and self._may_change(now)):
                self._begin(found, now)
            self._seen, self._served = now, self._serves()
        elif told and now - self._seen >= OVER_AFTER and self._is_over(told):
            self._end()
        if self._cause:
            self._go_on(now)
        return now + 1.0 if self._cause or core.queue.waiters else inf

    def _found(self, now: float) -> Cause | None:
        """Return the current cause; None if requests have waited only briefly."""
        core, found = self._core, cause_of(self._core)
        if found is None or core.fault or core.refusal or found.name == "read-only":
            return found
        if core.trouble == found.name:
            return found
        waiters = copied(core.queue.waiters)
        waited = now - waiters[0].began if waiters else 0.0
        # A logged cause is not corrected soon, so wait for the first answer of the server.
        is_asked = now - core.reached[0] > FRESH and core.asked_at > core.reached[0]
        until = TOLD_AFTER + 3 * ANSWER_WITHIN if is_asked else TOLD_AFTER
        return found if waited >= until else None

    def _is_over(self, told: Cause) -> bool:
        """True if there is evidence for it. An empty queue is no evidence."""
        if told.name == "read-only":
            return any(entry.role is Role.PRIMARY for entry in list(self._core.entries))
        if told.name in ("exhausted", "slow or locked") and self._core.idle:
            return True
        return self._by_fault or self._serves() > self._served

    def _may_change(self, now: float) -> bool:
        return (
            self._core.fault or self._core.refusal
        ) is not None or now - self._said >= CHANGE_AFTER

    def _begin(self, cause: Cause, now: float) -> None:
        core, told = self._core, self._cause
        self._cause, self._by_fault = cause, (core.fault or core.refusal) is not None
        self._seen = self._said = now
        if told is None:
            self._failing, self._began = False, now
            waited, failed = self._counts()
            self._before = self._last = waited - len(core.queue.waiters), failed
        core.trouble = cause.name
        if not self._by_fault:  # otherwise the connector has logged it
            core.say(messages.trouble_begins(core.name, cause, held_by(core)))

    def _go_on(self, now: float) -> None:
        core, cause = self._core, self._cause
        assert cause is not None  # noqa: S101 - the caller has checked it
        counts = self._counts()
        failed = counts[1] - self._before[1]
        if failed and not self._failing:
            self._failing = True
            core.say(messages.requests_fail(core.name, cause, held_by(core)), logging.ERROR)
        if now - self._said < REMIND or counts == self._last:
            return
        level = logging.ERROR if counts[1] > self._last[1] else logging.WARNING
        self._said, self._last = now, counts
        waited = counts[0] - self._before[0]
        text = messages.trouble_goes_on(core.name, cause, now - self._began, waited, failed)
        core.say(text, level)

    def _end(self) -> None:
        core, cause = self._core, self._cause
        self._cause, core.trouble = None, ""
        if cause is None or self._by_fault:
            return  # the connector logs it
        waited, failed = (n - b for n, b in zip(self._counts(), self._before, strict=True))
        core.say(messages.trouble_ends(core.name, cause, self._seen - self._began, waited, failed))

    def _serves(self) -> int:
        """The number of checkouts that neither failed nor are waiting."""
        counted = self._core.statistics
        return counted.checkouts - counted.errors - len(self._core.queue.waiters)

    def _counts(self) -> tuple[int, int]:
        """The numbers of requests that have waited, and that got no connection."""
        return self._core.statistics.queued, self._core.statistics.errors
