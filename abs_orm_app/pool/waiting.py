"""Makes a request wait for a connection until it is served or its deadline passes, and builds the
error for the latter.

It holds no lock, see `queue.py`. A thousand requests may time out at once, so they share one
description of the pool. Housekeeping makes it just before the first deadline: it takes system
calls, and after each one a thread that competes with a thousand others may have to wait long.
"""

from __future__ import annotations

from heapq import nsmallest
from math import inf
from operator import attrgetter
from typing import Any

from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from abs_orm_app.pool import messages
from abs_orm_app.pool.causes import cause_of, held_by, why_waiting
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.entry import AnyConnection
from abs_orm_app.pool.growth import RETRY_INTERVAL
from abs_orm_app.pool.housekeeping import housekeeping
from abs_orm_app.pool.queue import GRACE, LEFT, VOID, Handover, Turn, Waiter, copied
from abs_orm_app.pool.server_errors import again
from abs_orm_app.pool.steps import Steps

SHARED = 0.05  # seconds for which requests that time out share one description
OLDEST = 1.0  # seconds; up to this age it is also used while another thread makes a new one
AHEAD = 2 * RETRY_INTERVAL  # seconds before the first deadline, in which housekeeping runs twice
PATROL = 1.0  # seconds after which the first waiter checks that housekeeping still runs
LEADERS = 4  # requests that wake at the same time when many time out, see `queue.py`

_taken_at = attrgetter("taken_at")
_deadline = attrgetter("deadline")


def wait_for_connection(
    core: Core, began: float, timeout: float, deadline: float, make_waiter: type[Waiter]
) -> Steps[AnyConnection]:
    """Wait in the queue and return a connection, not checked yet. Raises what `getconn` raises."""
    _refuse_if_hopeless(core, began, timeout, deadline)
    waiter = make_waiter(began, deadline)
    outcome: Any = None
    try:
        core.queue.waiters.append(waiter)
        _refuse_if_too_many(core, waiter)
        core.statistics.queued += 1
        core.serve()
        if core.closed:
            core.queue.tell_all(lambda: closed_error(core))
        while outcome is None and (now := monotonic()) < deadline:
            looked_after = _is_looked_after(core, now)
            if looked_after and not _is_first(core, waiter):
                outcome = yield Turn(waiter, deadline, GRACE if deadline - now > AHEAD else 0.0)
            else:
                step = PATROL if looked_after else RETRY_INTERVAL
                outcome = yield Turn(waiter, min(now + step, deadline))
            if outcome is not None and (outcome := core.queue.settle(waiter, VOID)) is VOID:
                waiter, outcome = make_waiter(began, deadline), None
                core.queue.waiters.appendleft(waiter)
                core.serve()
                if core.closed:
                    core.queue.tell_all(lambda: closed_error(core))
        if outcome is None:
            outcome = core.queue.settle(waiter, timeout_error(core, timeout))
            core.statistics.timeouts += isinstance(outcome, PoolTimeout)
        core.statistics.waits.add(monotonic() - began)
        if isinstance(outcome, BaseException):
            raise outcome
        connection: AnyConnection = outcome.conn
        return connection  # noqa: TRY300 - an interruption here is handled, too
    except BaseException:
        _leave(core, waiter)
        del waiter, outcome  # they refer to the error, whose traceback refers to this frame
        raise


def _leave(core: Core, waiter: Waiter) -> None:
    """Stop waiting, because of an error of the pool, a KeyboardInterrupt, a task's time limit or a
    cancellation. A connection that has arrived meanwhile goes to the next request.
    """
    outcome = core.queue.settle(waiter, LEFT)
    if isinstance(outcome, Handover):
        core.add(outcome.conn)
    core.queue.leave(waiter)
    if core.owes_collection:
        core.call_housekeeping()


def _is_looked_after(core: Core, now: float) -> bool:
    """Call housekeeping if it can help a waiting request; False if its thread cannot run."""
    if core.due - now <= RETRY_INTERVAL and not core.has_room() and housekeeping.is_running():
        return True  # all connections are in use, and it looks again soon
    return housekeeping.call(core)


def _is_first(core: Core, waiter: Waiter) -> bool:
    """True for the request that has waited longest, which watches housekeeping for all others."""
    try:
        return core.queue.waiters[0] is waiter
    except IndexError:
        return True


def _refuse_if_hopeless(core: Core, now: float, timeout: float, deadline: float) -> None:
    """Raise at once if waiting cannot help."""
    if core.closed:
        raise closed_error(core)
    fault = core.recent_permanent_fault()
    if fault and not core.in_use:
        raise again(fault.error)
    if deadline <= now:
        core.statistics.timeouts += 1
        raise timeout_error(core, timeout)


def _refuse_if_too_many(core: Core, waiter: Waiter) -> None:
    """Raise if `max_waiting` others wait before this one."""
    waiters, limit = core.queue.waiters, core.max_waiting
    if limit and len(waiters) > limit:
        # A request that was just served may not have left yet.
        ahead = [each for each in copied(waiters) if each.outcome is None]
        if waiter in ahead[limit:]:
            raise TooManyRequests(messages.too_many_requests(core.name, limit))


def timeout_error(core: Core, timeout: float) -> PoolTimeout:
    at, text = core.described
    now = monotonic()
    if now - at > SHARED:
        if now - at <= OLDEST:
            core.described = (now, text)  # for the others, while this thread makes a new one
        text = _describe(core)
        core.described = (monotonic(), text)
    error = PoolTimeout(messages.pool_timeout(timeout, text))
    fault = core.fault or core.refusal
    error.__cause__ = fault.error if fault else None
    return error


def prepare_timeouts(core: Core, now: float) -> float:
    """If a deadline is near, describe the pool and make the first waiters leaders.

    For housekeeping. Returns when to run again (`monotonic`).
    """
    first = nsmallest(LEADERS, copied(core.queue.waiters), key=_deadline)
    if not first or first[0].deadline - now > AHEAD:
        return inf
    if now - core.described[0] > SHARED:
        core.described = (monotonic(), _describe(core))
    for waiter in first:
        waiter.lead()
    return max(first[0].deadline, now) + SHARED


def _describe(core: Core) -> str:
    in_use = core.in_use
    longest = min(in_use, key=_taken_at, default=None)
    return messages.why_nothing_came(
        core.name,
        cause_of(core) or why_waiting(core),
        size=core.min_size,
        limit=core.max_size,
        in_use=len(in_use),
        idle=len(core.idle),
        opening=len(core.attempts),
        waiting=len(core.queue.waiters),
        longest=core.holder_of(longest) if longest else None,
        held_by=held_by(core),
    )


def closed_error(core: Core) -> PoolClosed:
    state = "already closed" if core.was_opened else "not open yet"
    return PoolClosed(f"the pool {core.name!r} is {state}")
