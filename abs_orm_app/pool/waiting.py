"""How a request waits for a connection, until it is served or until its deadline.

It holds no lock, see `queue.py`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from psycopg_pool import TooManyRequests

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.entry import AnyConnection
from abs_orm_app.pool.errors import AHEAD, closed_error, timeout_error
from abs_orm_app.pool.faults import again
from abs_orm_app.pool.housekeeping import housekeeping
from abs_orm_app.pool.queue import GRACE, Waiter

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool


def wait_for_connection(
    pool: HardenedPool, began: float, timeout: float, deadline: float
) -> AnyConnection:
    """Wait in the queue for a connection, which is not checked yet; raise what `getconn` raises."""
    _refuse_if_hopeless(pool, began, timeout, deadline)
    waiter = Waiter(began, deadline)
    outcome: Any = None
    try:
        pool.queue.waiters.append(waiter)
        _refuse_if_too_many(pool, waiter)
        pool.statistics.queued += 1
        pool.serve()
        if pool.closed:
            pool.queue.tell_all(lambda: closed_error(pool))
        while outcome is None and (now := monotonic()) < deadline:
            if not _is_looked_after(pool, now):
                outcome = waiter.wait(min(now + RETRY_INTERVAL, deadline))
            else:
                outcome = waiter.wait(deadline, GRACE if deadline - now > AHEAD else 0.0)
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
    """Stop waiting because of an error of the pool, or of KeyboardInterrupt, a task's time limit or
    a cancelled greenlet. A connection that came in the meantime goes to the next request.
    """
    outcome = waiter.settle(error)
    if not isinstance(outcome, BaseException):
        pool.add(outcome)
    pool.queue.leave(waiter)
    if pool.owes_collection:
        pool.call_housekeeping()


def _is_looked_after(pool: HardenedPool, now: float) -> bool:
    """Call housekeeping if it can help a waiting request; False if its thread cannot run."""
    if pool.due - now <= RETRY_INTERVAL and not pool.has_room() and housekeeping.is_running():
        return True  # all connections are in use, and it looks again soon
    return housekeeping.call(pool)


def _refuse_if_hopeless(pool: HardenedPool, now: float, timeout: float, deadline: float) -> None:
    """Raise at once if waiting cannot help."""
    if pool.closed:
        raise closed_error(pool)
    fault = pool.connector.recent_permanent_fault(RETRY_INTERVAL)
    if fault and not pool.has_connections_in_use():
        raise again(fault.error)
    if deadline <= now:
        pool.statistics.timeouts += 1
        raise timeout_error(pool, timeout)


def _refuse_if_too_many(pool: HardenedPool, waiter: Waiter) -> None:
    """Raise if `max_waiting` others wait before this one."""
    waiters, limit = pool.queue.waiters, pool.max_waiting
    if limit and len(waiters) > limit and waiter in list(waiters)[limit:]:
        raise TooManyRequests(messages.too_many_requests(pool.name, limit))
