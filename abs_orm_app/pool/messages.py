"""The messages of the pool, in errors and in the log. docs/troubleshooting.md explains each."""

from __future__ import annotations

from abs_orm_app.config.explain import explain
from abs_orm_app.config.printable import printable
from abs_orm_app.pool.entry import Holder
from abs_orm_app.pool.faults import Fault
from abs_orm_app.pool.server_errors import UNKNOWN, WRONG_SETTINGS, ServerError, classify
from abs_orm_app.pool.silence import Silence

CALLERS = 5  # lines of the project that a warning names, beside the one that took a connection


def pool_timeout(timeout: float, why: str) -> str:
    """The text of a timeout; `why` is from `why_nothing_came`."""
    return f"couldn't get a connection after {timeout:.2f} sec: {why}"


def why_nothing_came(
    name: str,
    *,
    size: int,
    limit: int,
    connections: int,
    in_use: int,
    idle: int,
    opening: int,
    waiting: int,
    longest: Holder | None,
    unused: int,
    fault: Fault | None,
    silence: Silence | None = None,
) -> str:
    """Explain why no connection came: the limits, the holders, the cause, what to do."""
    being_opened = f", {opening} being opened" if opening else ""
    state = (
        f"Pool {name!r} (size {size} + overflow {limit - size}): {in_use} in use, {idle} idle"
        f"{being_opened}, {waiting} waiting."
    )
    held = f" {_holds(longest)}" if longest else ""
    if fault:
        kind = _kind(fault)
        why = f"{kind.problem}: {first_line(fault.error)}"
        what = f"{kind.hint} See `{explain(kind.entry)}`."
    elif silence and connections >= limit:
        why, what = _nothing_comes_back(in_use, silence)
    elif connections >= limit:
        why = (
            "the only connection is in use."
            if limit == 1
            else f"all {limit} connections are in use."
        )
        what = (
            f"{_unused(unused, in_use)}Return connections earlier (DB_POOL_LEAK_SECONDS=10 logs"
            " where they were taken), or raise DB_POOL_SIZE or DB_MAX_OVERFLOW. See"
            f" `{explain('pool-exhausted')}`."
        )
    else:
        why = "no connection could be opened in time: the server or the network does not answer."
        what = f"See `{explain('hung-server')}`."
    return f"{why} {state}{held} {what}"


def _kind(fault: Fault) -> ServerError:
    kind = classify(fault.error)
    return WRONG_SETTINGS if kind is UNKNOWN and fault.permanent else kind


def _unused(unused: int, in_use: int) -> str:
    """Say so if most of the connections are not needed where they are."""
    if not 0 < in_use < 2 * unused:
        return ""
    which = "It is" if in_use == 1 else f"{unused} of them are"
    return (
        f"{which} idle, in no transaction, until the request ends: DB_POOL_RELEASE=transaction"
        " returns such a connection after each query. "
    )


def _nothing_comes_back(in_use: int, silence: Silence) -> tuple[str, str]:
    which = (
        "the only connection in use" if in_use == 1 else f"any of the {in_use} connections in use"
    )
    why = f"nothing has come back on {which} for {silence.seconds:.1f} s."
    what = (
        "The server's machine acknowledges nothing: it is down, or the network to it is."
        if silence.unanswered
        else "The server or the network does not answer, or each of them runs one long statement."
    )
    return why, f"{what} See `{explain('hung-server')}`."


def _holds(holder: Holder, more: int = 0) -> str:
    where = f", taken at {holder.where}" if holder.where else ""
    pin = f", pinned by {holder.pin}" if holder.pin else ""
    others = f", and {more} more from the same place" if more else ""
    return (
        f"Thread {holder.thread!r} has held one for {holder.seconds:.1f} s"
        f" (server process {holder.pid}{where}{pin}){others}."
    )


def too_many_requests(name: str, waiting: int) -> str:
    return f"the pool {name!r} has already {waiting} requests waiting"


def left_in_transaction(name: str) -> str:
    return f"the configure function of pool {name!r} left a transaction open; connection discarded"


def cannot_connect(name: str, fault: Fault) -> str:
    what = "" if fault.permanent else " The pool retries while a request waits."
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
        f" returning it. {where} See `{explain('leaked-connection')}`."
    )


def held_too_long(name: str, holder: Holder, *, more: int) -> str:
    """`more`: how many others the same line has taken."""
    callers = holder.lines[1 : 1 + CALLERS]
    called = f" Called from {', '.join(callers)}." if callers else ""
    return f"pool {name!r}: {_holds(holder, more)}{called} See `{explain('leaked-connection')}`."


def cannot_return(name: str, conn: str, *, other: str | None, lost: bool) -> str:
    """`other`: the name of the pool it comes from. `lost`: the pool has already freed its slot."""
    if other is not None:
        why = f"it comes from pool {other!r}"
    elif lost:
        why = "it was garbage-collected, and the pool has replaced it"
    else:
        why = "it doesn't come from any pool, or was returned before"
    return f"can't return connection to pool {name!r}, {why}: {conn}"


def rolled_back(name: str) -> str:
    return f"pool {name!r}: a connection was returned in a transaction, which was rolled back"


def returned_active(name: str) -> str:
    return f"pool {name!r}: a connection was returned in the middle of a query, and was closed"


def reset_failed(name: str, error: Exception) -> str:
    return f"pool {name!r} could not reset a returned connection: {first_line(error)}"


def attempt_hung(name: str, stage: str) -> str:
    what = "its configure function did not end" if stage == "configure" else "it did not connect"
    return f"an attempt to open a connection of pool {name!r} was given up: {what} in time"


def housekeeping_died() -> str:
    return "the housekeeping thread of the pools had died; it was started again"


def housekeeping_failed(name: str, error: Exception) -> str:
    return f"housekeeping of pool {name!r} failed: {type(error).__name__}: {first_line(error)}"


def observer_failed(name: str) -> str:
    return f"the metrics collector of pool {name!r} failed; the pool keeps working"


def first_line(error: BaseException) -> str:
    """The error in one line, ended by a full stop. A server's text may command a terminal."""
    line = printable(str(error).strip().partition("\n")[0]) or type(error).__name__
    return line if line.endswith(".") else f"{line}."
