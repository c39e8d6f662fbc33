"""Why requests get no connection, or cannot write; and what the log says.

A slow statement, a lock, a server that hangs and one that is gone look the same in the queue. So
the server is asked, at an address that a connection leads to, before a message says that it does
not answer. That opens no session, so it counts against no limit, and needs no password.
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

ASK_AFTER = 0.3  # seconds that a request has waited when the server is asked
ASK_EVERY = 1.0  # seconds between two questions; `ASK_AGAIN` while it answers
ASK_AGAIN = 3.0
ANSWER_WITHIN = 1.0  # seconds; half of it for a host that has not answered for long already
FRESH = 5.0  # seconds for which an answer counts, or a fault that no request needs fixed
TOLD_AFTER = 1.5  # seconds that a request has waited when the log reports it
CHANGE_AFTER = 10.0  # seconds after which it tells another cause of the same trouble, or the next
OVER_AFTER = 3.0  # seconds without that cause until the log says that it is over
REMIND = 60.0  # seconds between two lines about the same cause


def cause_of(core: Core) -> Cause | None:
    """Why requests wait, fail or cannot write now; None if none does."""
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
    """Why a request waits, where connecting has not failed."""
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
    """Which requests, tasks and commands hold the connections."""
    held = [core.holder_of(entry) for entry in core.in_use]
    labels = core.hooks.served_by({each.thread for each in held if not each.is_task})
    kinds = {True: "task", False: "thread"}
    return messages.held_by(
        labels.get(each.thread, f"{kinds[each.is_task]} {each.thread}") for each in held
    )


def ask_if_that_may_be_why(core: Core, now: float) -> None:
    """Have the server asked whether it answers, if requests wait for it. Never waits."""
    every = ASK_AGAIN if core.reached[1] == ANSWERING else ASK_EVERY
    waiters = copied(core.queue.waiters)
    if not waiters or now - waiters[0].began < ASK_AFTER or now - core.asked_at < every:
        return
    if core.attempts or _active(core):
        core.asked_at = now
        with suppress(RuntimeError, MemoryError):  # there is no thread left
            threads.start(f"{core.name}-asker", ask, core)


def ask(core: Core) -> None:
    """Ask the server, where connections lead that wait for it. Takes `ANSWER_WITHIN` for each of
    three addresses at most.
    """
    targets: list[Any] = []
    for entry in _active(core):
        with suppress(OSError):  # it is closed
            if (peer := entry.twin.getpeername()) not in targets:
                targets.append(peer)
    found, where = reached(targets or [place.target for place in core.places])
    if found:
        core.reached = (monotonic(), found, where)


def _active(core: Core) -> list[Entry]:
    """The connections that wait for the server's answer."""
    return [e for e in core.in_use if e.pgconn.transaction_status == TransactionStatus.ACTIVE]


def reached(targets: list[Any], within: float = ANSWER_WITHIN) -> tuple[str, str]:
    """Ask these addresses until one answers: the best of what they do, and where; "" for none."""
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
    """A timeout of connecting, with where it was, and whether something accepts connections there.

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
    """A fault that may come and go: what is logged of it. Any thread may call this."""

    def __init__(self) -> None:
        self._told: dict[float, object] = {}
        self._text = ""  # what was logged, while it lasts

    def is_news(self, text: str) -> bool:
        """True if it is to be told now: one text in `CHANGE_AFTER` seconds, the same one once."""
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
        """It is over: True if that is to be told, because it was told that it began."""
        told, self._text = self._text, ""
        return bool(told)


class Story:
    """What the log reports about one pool: that a trouble begins, that requests fail, a reminder
    each minute with numbers, and its end. For housekeeping.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cause: Cause | None = None
        self._by_fault = self._failing = False
        self._began = self._seen = self._said = 0.0
        self._served = 0  # when it was last seen
        self._before = self._last = (0, 0)

    def tend(self, now: float) -> float:
        """Tell what is new; return when to look again (`monotonic`)."""
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
        """The cause now, unless requests wait for a moment only."""
        core, found = self._core, cause_of(self._core)
        if found is None or core.fault or core.refusal or found.name == "read-only":
            return found
        if core.trouble == found.name:
            return found
        waiters = copied(core.queue.waiters)
        waited = now - waiters[0].began if waiters else 0.0
        # What is told now is not corrected soon: the first answer of the server is waited for.
        is_asked = now - core.reached[0] > FRESH and core.asked_at > core.reached[0]
        until = TOLD_AFTER + 3 * ANSWER_WITHIN if is_asked else TOLD_AFTER
        return found if waited >= until else None

    def _is_over(self, told: Cause) -> bool:
        """True if that is shown. That nobody waits any more shows nothing."""
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
        if not self._by_fault:  # else the connector has said it
            core.say(messages.trouble_begins(core.name, cause, held_by(core)))

    def _go_on(self, now: float) -> None:
        core, cause = self._core, self._cause
        assert cause is not None  # noqa: S101 - there is a trouble
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
            return  # the connector says it
        waited, failed = (n - b for n, b in zip(self._counts(), self._before, strict=True))
        core.say(messages.trouble_ends(core.name, cause, self._seen - self._began, waited, failed))

    def _serves(self) -> int:
        """Checkouts that did not fail, and do not wait."""
        counted = self._core.statistics
        return counted.checkouts - counted.errors - len(self._core.queue.waiters)

    def _counts(self) -> tuple[int, int]:
        """Requests that have waited, and that got no connection."""
        return self._core.statistics.queued, self._core.statistics.errors
