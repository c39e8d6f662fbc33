"""What the pool says, to the log and in errors. `docs/troubleshooting.md` has an entry for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from abs_orm_app.pool.entry import Holder
from abs_orm_app.pool.faults import Fault
from abs_orm_app.pool.server_errors import UNKNOWN, WRONG_SETTINGS, ServerError, classify

GUIDE = "docs/troubleshooting.md"


def pool_timeout(
    name: str,
    timeout: float,
    stats: Mapping[str, int],
    connecting: int,
    holders: Sequence[Holder],
    fault: Fault | None,
) -> str:
    """Say why no connection came: the limits, who has them, what stood in the way, what to do."""
    size, limit = stats["pool_min"], stats["pool_max"]
    idle, waiting = stats["pool_available"], stats["requests_waiting"]
    opening = f", {connecting} being opened" if connecting else ""
    state = (
        f"Pool {name!r} (size {size} + overflow {limit - size}): {len(holders)} in use, {idle} idle"
        f"{opening}, {waiting} waiting."
    )
    held = f" {_holds(holders[0])}" if holders else ""
    if fault:
        kind = _kind(fault)
        why = f"{kind.problem}: {first_line(fault.error)}"
        what = f"{kind.hint} See {GUIDE}#{kind.entry}"
    elif stats["pool_size"] - connecting >= limit:
        why = f"all {limit} connections are in use."
        what = (
            "Shorten what holds them (DB_POOL_LEAK_SECONDS=10 logs where they were taken), or raise"
            f" DB_POOL_SIZE or DB_MAX_OVERFLOW. See {GUIDE}#pool-exhausted"
        )
    else:
        why = "no connection could be opened in time: the server or the network does not answer."
        what = f"See {GUIDE}#hung-server"
    return f"couldn't get a connection after {timeout:.2f} sec: {why} {state}{held} {what}"


def _kind(fault: Fault) -> ServerError:
    kind = classify(fault.error)
    return WRONG_SETTINGS if kind is UNKNOWN and fault.permanent else kind


def _holds(holder: Holder) -> str:
    where = f", taken at {holder.where}" if holder.where else ""
    return (
        f"Thread {holder.thread!r} has held one for {holder.seconds:.1f} s"
        f" (server process {holder.pid}{where})."
    )


def too_many_requests(name: str, waiting: int) -> str:
    return f"the pool {name!r} has already {waiting} requests waiting"


def left_in_transaction(name: str) -> str:
    return f"the configure function of pool {name!r} left a transaction open; connection discarded"


def cannot_connect(name: str, fault: Fault) -> str:
    what = "" if fault.permanent else " It is tried again for as long as a request waits."
    return f"pool {name!r} cannot connect: {first_line(fault.error)}{what}"


def connected_again(name: str, seconds: float) -> str:
    return f"pool {name!r} is connected again, {seconds:.1f} s after the first failure"


def connection_lost(name: str, holder: Holder) -> str:
    where = (
        f"It was taken at {holder.where}."
        if holder.where
        else "DB_POOL_LEAK_SECONDS=10 shows where it was taken."
    )
    return (
        f"pool {name!r} took back a connection that thread {holder.thread!r} dropped without"
        f" returning it. {where} See {GUIDE}#leaked-connection"
    )


def held_too_long(name: str, holder: Holder) -> str:
    return f"pool {name!r}: {_holds(holder)} See {GUIDE}#leaked-connection\n{holder.stack}"


def timer_died(name: str) -> str:
    return f"the timer thread of pool {name!r} had died; it was started again"


def observer_failed(name: str) -> str:
    return f"what watches pool {name!r} failed; the pool goes on, its metrics may be wrong"


def first_line(error: BaseException) -> str:
    """The error in one line, ended by a full stop."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if line.endswith(".") else f"{line}."
