"""How a request waits for a connection: once, until it is served or its deadline.

It holds no lock, see `queue.py`; what a timeout says is cheap, and formatted for nobody else.
"""

from __future__ import annotations

from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.entry import AnyConnection
from abs_orm_app.pool.faults import again
from abs_orm_app.pool.housekeeping import housekeeping
from abs_orm_app.pool.queue import Waiter
from abs_orm_app.pool.silence import line, silence

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

SHARED = 0.05  # seconds for which one description of the pool serves all who time out

_taken_at = attrgetter("taken_at")


def wait_for_connection(
    pool: HardenedPool, began: float, timeout: float, deadline: float
) -> AnyConnection:
    """Wait in the queue for a connection that is not checked yet; raise what `getconn` raises."""
    _refuse_if_hopeless(pool, began, timeout, deadline)
    waiter = Waiter(began, deadline)
    outcome: Any = None
    try:
        pool.queue.waiters.append(waiter)
        pool.statistics.queued += 1
        pool.serve()
        if pool.closed:
            pool.queue.tell_all(lambda: closed_error(pool))
        while outcome is None and (now := monotonic()) < deadline:
            until = deadline if _is_looked_after(pool, now) else now + RETRY_INTERVAL
            outcome = waiter.wait(min(until, deadline))
        if outcome is None:
            outcome = waiter.settle(error := timeout_error(pool, timeout))
            pool.statistics.timeouts += outcome is error
        pool.statistics.waits.add(monotonic() - began)
        if isinstance(outcome, BaseException):
            raise outcome
        connection: AnyConnection = outcome
        return connection  # noqa: TRY300 - an interruption here is handled, too
    except BaseException as error:
        _leave(pool, waiter, error)
        raise


def _leave(pool: HardenedPool, waiter: Waiter, error: BaseException) -> None:
    """Wait no more, for an error of the pool, or KeyboardInterrupt, a task's time limit, a
    cancelled greenlet: then a connection that came in the meantime goes to the next.
    """
    outcome = waiter.settle(error)
    if not isinstance(outcome, BaseException):
        pool.add(outcome)
    pool.queue.leave(waiter)
    if pool.owes_collection:
        pool.call_housekeeping()


def _is_looked_after(pool: HardenedPool, now: float) -> bool:
    """Call housekeeping if it has something to do for who waits; False if nobody can come."""
    if pool.due - now <= RETRY_INTERVAL and not pool.has_room() and housekeeping.is_running():
        return True  # all connections are out, and it looks again soon
    return housekeeping.call(pool)


def _refuse_if_hopeless(pool: HardenedPool, now: float, timeout: float, deadline: float) -> None:
    """Raise instead of waiting, where waiting is of no use."""
    if pool.closed:
        raise closed_error(pool)
    fault = pool.connector.recent_permanent_fault(RETRY_INTERVAL)
    if fault and not pool.has_connections_in_use():
        raise again(fault.error)
    if deadline <= now:
        pool.statistics.timeouts += 1
        raise timeout_error(pool, timeout)
    if pool.max_waiting and len(pool.queue.waiters) >= pool.max_waiting:
        raise TooManyRequests(messages.too_many_requests(pool.name, len(pool.queue.waiters)))


def timeout_error(pool: HardenedPool, timeout: float) -> PoolTimeout:
    at, text = pool.described
    now = monotonic()
    if now - at > SHARED:
        text = _describe(pool, timeout)
        pool.described = (now, text)
    error = PoolTimeout(messages.pool_timeout(timeout, text))
    fault = pool.connector.fault
    error.__cause__ = fault.error if fault else None
    return error


def _describe(pool: HardenedPool, waited: float) -> str:
    lines = [line(entry.pgconn) for entry in tuple(pool.in_use)]
    longest = min(tuple(pool.in_use), key=_taken_at, default=None)
    return messages.why_nothing_came(
        pool.name,
        size=pool.min_size,
        limit=pool.max_size,
        connections=len(pool.entries),
        in_use=len(pool.in_use),
        idle=pool.idle_count(),
        opening=len(pool.connector.attempts),
        waiting=len(pool.queue.waiters),
        longest=longest.holder() if longest else None,
        fault=pool.connector.fault,
        silence=silence(lines, waited),
    )


def closed_error(pool: HardenedPool) -> PoolClosed:
    state = "already closed" if pool.was_opened else "not open yet"
    return PoolClosed(f"the pool {pool.name!r} is {state}")
