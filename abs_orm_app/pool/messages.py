"""The messages of the pool, in errors and in the log. docs/troubleshooting.md explains each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from abs_orm_app.config.texts import counted, explain, printable
from abs_orm_app.pool.holders import Holder
from abs_orm_app.pool.server_errors import HANGS, NAMES, OPENING, SAYS_NOTHING, Fault, classify

MOST_HOLDERS = 3  # views, tasks and commands that a message names
SLOW_OR_LOCKED = (
    "the server answers, but there are slow statements, or statements that wait for a lock"
)
CALLERS = 5  # lines of the project that a warning names, besides the one that took a connection


def pool_timeout(timeout: float, why: str) -> str:
    """The text of a timeout; `why` is from `why_nothing_came`."""
    return f"couldn't get a connection after {timeout:.2f} sec: {why}"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why requests get no connection, or cannot write."""

    name: str  # short, for metrics: one of NAMES, "exhausted", "slow or locked", "opening"
    problem: str  # for readers, the same in all reports: "the pool is exhausted"
    detail: str = ""  # what was seen
    hint: str  # what to do: whole sentences
    entry: str  # of docs/troubleshooting.md

    @property
    def text(self) -> str:
        """One sentence."""
        return f"{self.problem}: {self.detail}" if self.detail else f"{self.problem}."


def of_fault(fault: Fault) -> Cause:
    """The last attempt to open a connection failed."""
    kind = fault.kind
    detail = first_line(fault.error)
    return Cause(
        name=kind.name, problem=kind.problem, detail=detail, hint=kind.hint, entry=kind.entry
    )


def exhausted(limit: int, *, in_transaction: int, unused: int) -> Cause:
    """The project holds all connections while it does something else."""
    inside = f", {in_transaction} of them idle in a transaction" if in_transaction else ""
    return Cause(
        name="exhausted",
        problem="the pool is exhausted",
        detail=f"{_all_in_use(limit)}{inside}.",
        hint=f"{_unused(unused, limit)}Return connections earlier (DB_POOL_LEAK_SECONDS=10 logs"
        " where they were taken), or raise DB_POOL_SIZE or DB_MAX_OVERFLOW.",
        entry="pool-exhausted",
    )


def slow_or_locked(limit: int, active: int) -> Cause:
    """The server answers, but statements are slow or blocked."""
    run = f"{active} of them run" if active < limit else "each runs" if limit > 1 else "it runs"
    return Cause(
        name="slow or locked",
        problem=SLOW_OR_LOCKED,
        detail=f"{_all_in_use(limit)}, and {run} a statement.",
        hint="`manage.py check_pool` shows which, and who blocks them.",
        entry="slow-statements",
    )


def no_answer(where: str, *, silent: bool) -> Cause:
    """The server was probed, and did not answer. `silent`: something accepted the connection."""
    kind = HANGS if silent else classify("no answer")
    detail = f"{where} {SAYS_NOTHING}." if silent else f"nothing accepts connections at {where}."
    return Cause(
        name=kind.name, problem=kind.problem, detail=detail, hint=kind.hint, entry=kind.entry
    )


def opening(seconds: float) -> Cause:
    """An attempt to open a connection takes long, and it is not known why."""
    return Cause(
        name=NAMES[OPENING],
        problem=OPENING,
        detail=f"the first attempt has taken {seconds:.1f} s." if seconds > 0 else "",
        hint="",
        entry="hung-server",
    )


def read_only(address: str, role: str) -> Cause:
    """A server that refuses writes is where the primary should be."""
    what = "a standby" if role == "standby" else "read-only"
    return Cause(
        name="read-only",
        problem=f"the server is {what}, so writes fail",
        detail=f"{address} does not accept them." if address else "",
        hint="Promote a standby, or correct the address.",
        entry="writes-go-to-a-standby",
    )


def why_nothing_came(
    name: str,
    cause: Cause,
    *,
    size: int,
    limit: int,
    in_use: int,
    idle: int,
    opening: int,
    waiting: int,
    longest: Holder | None,
    held_by: str,
) -> str:
    """Explain why no connection came: the cause, the limits, the holders, what to do."""
    being_opened = f", {opening} being opened" if opening else ""
    state = (
        f"Pool {name!r} (size {size} + overflow {limit - size}): {in_use} in use, {idle} idle"
        f"{being_opened}, {waiting} waiting."
    )
    parts = (
        cause.text,
        state,
        held_by,
        _holds(longest) if longest else "",
        cause.hint,
        f"See `{explain(cause.entry)}`.",
    )
    return " ".join(filter(None, parts))


def held_by(labels: Iterable[str]) -> str:
    """For example "Held by GET /orders/ (6), task shop.send (1)."."""
    counted = Counter(labels).most_common()
    shown = [f"{label} ({count})" for label, count in counted[:MOST_HOLDERS]]
    more = sum(count for _, count in counted[MOST_HOLDERS:])
    shown += [f"{more} more"] if more else []
    return f"Held by {', '.join(shown)}." if shown else ""


def _all_in_use(limit: int) -> str:
    return "the only connection is in use" if limit == 1 else f"all {limit} connections are in use"


def _unused(unused: int, in_use: int) -> str:
    """Describe the unused connections, if they are most of those in use."""
    if not 0 < in_use < 2 * unused:
        return ""
    which = "It is" if in_use == 1 else f"{unused} of them are"
    return (
        f"{which} idle, in no transaction, until the request ends: DB_POOL_RELEASE=transaction"
        " returns such a connection after each query. "
    )


def _holds(holder: Holder, more: int = 0) -> str:
    where = f", taken at {holder.where}" if holder.where else ""
    pin = f", pinned by {holder.pin}" if holder.pin else ""
    others = f", and {more} more from the same place" if more else ""
    return (
        f"{holder.who[0].upper()}{holder.who[1:]} has held a connection for {holder.seconds:.1f} s"
        f" (server process {holder.pid}{where}{pin}){others}."
    )


def too_many_requests(name: str, waiting: int) -> str:
    return f"the pool {name!r} has already {waiting} requests waiting"


def left_in_transaction(name: str) -> str:
    return f"the configure function of pool {name!r} left a transaction open; connection discarded"


def configure_failed(name: str, error: Exception) -> str:
    return f"the configure function of pool {name!r} failed: {type(error).__name__}: {error}"


def source_failed(name: str, error: Exception) -> str:
    what = f"{type(error).__name__}: {error}"
    return f"the function that gives pool {name!r} its address or password failed: {what}"


def check_refuses(name: str, error: Exception) -> str:
    why = f"{type(error).__name__}: {first_line(error)}"
    return f"the check of pool {name!r} refuses new connections: {why} The pool retries."


def check_accepts(name: str, seconds: float) -> str:
    return f"the check of pool {name!r} accepts connections again, after {seconds:.1f} s"


def check_gave_none(*, in_time: bool) -> str:
    return "it has closed the connection" if in_time else "it did not end in time"


def cannot_connect(name: str, fault: Fault) -> str:
    what = "" if fault.permanent else " The pool retries while a request waits."
    return f"pool {name!r} cannot connect, {of_fault(fault).text}{what}"


def trouble_begins(name: str, cause: Cause, held_by: str) -> str:
    return " ".join(
        filter(None, (f"pool {name!r}: {cause.text}", held_by, f"See `{explain(cause.entry)}`."))
    )


def requests_fail(name: str, cause: Cause, held_by: str) -> str:
    return " ".join(filter(None, (f"pool {name!r}: requests fail, {cause.text}", held_by)))


def trouble_goes_on(name: str, cause: Cause, seconds: float, waited: int, failed: int) -> str:
    what = f"still in trouble after {seconds:.0f} s: {cause.problem}"
    return f"pool {name!r}: {what}. {_counted(waited, failed)}"


def trouble_ends(name: str, cause: Cause, seconds: float, waited: int, failed: int) -> str:
    what = (
        "its server accepts writes again"
        if cause.name == "read-only"
        else "requests get connections again"
    )
    return f"pool {name!r}: {what}, after {seconds:.1f} s. {_counted(waited, failed)}"


def _counted(waited: int, failed: int) -> str:
    return f"{counted(waited, 'request')} waited, {failed} failed."


def connected_again(name: str, seconds: float) -> str:
    return f"pool {name!r} is connected again, {seconds:.1f} s after the first failure"


def connection_lost(name: str, holder: Holder) -> str:
    where = (
        f"It was taken at {holder.where}."
        if holder.where
        else "DB_POOL_LEAK_SECONDS=10 shows where it was taken."
    )
    return (
        f"pool {name!r} took back a connection that {holder.who} dropped without"
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


def returned_spoiled(name: str) -> str:
    return (
        f"pool {name!r}: a connection was returned after an interrupted pipeline or executemany(),"
        " within a block of transaction(), or while another thread or task used it, and was closed"
    )


def thread_gone() -> str:
    return "a thread that should have opened a connection has ended: memory may be short"


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
    """Return the error in one line, ending in a full stop. Escape sequences are removed."""
    line = printable(str(error).strip().partition("\n")[0]) or type(error).__name__
    return line if line.endswith(".") else f"{line}."
