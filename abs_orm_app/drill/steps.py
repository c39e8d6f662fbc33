"""The promises of a pool, each with a test that shows on a live database whether it is kept."""

import gc
import os
import socket
from contextlib import closing
from threading import Thread
from time import sleep
from typing import Any

from abs_orm_app.backends.routing import only_reads
from abs_orm_app.drill.stage import (
    THREAD,
    AnyPool,
    Promise,
    Seen,
    Stage,
    in_words,
    judged,
    shortened,
)
from abs_orm_app.environment import NEVER
from abs_orm_app.facts.timeout import run_with_timeout
from abs_orm_app.pool.entry import AnyConnection
from abs_orm_app.pool.pool import HardenedPool
from abs_orm_app.pool.pre_ping import PING_AFTER
from abs_orm_app.pool.roles import MISPLACED_LIFE

# Seconds. Longer configured times are shortened to these.
EXHAUSTED_TIMEOUT = 0.5  # of a checkout that must fail
FAULT_TIMEOUT = 2.0  # of a checkout from a pool whose only connection is unusable
RESTART_TIMEOUT = 5.0  # of a checkout from a pool whose connections are all unusable
RECYCLE = 1.0
# Seconds of tolerance
LATE = 0.3  # after a timeout
REPLACE_SECONDS = 1.0  # to replace connections, besides the time to open one


# These run one after another in one pool with the configured settings


def fills(stage: Stage) -> Seen:
    size = stage.pool.min_size
    stage.pool.open()
    count = stage.wait_for_sessions(lambda count: count >= size)
    if count != size:
        return Seen("broken", f"{count} of {size} connections on the server{_left(stage)}")
    return Seen("kept", f"{count} connections on the server")


def grows(stage: Stage) -> Seen:
    limit = stage.pool.max_size
    stage.held.extend(stage.check_out_many(limit))
    taken, count = len(stage.held), stage.control.sessions()
    what = f"{taken} of {limit} checked out at once, {count} on the server"
    if not taken == count == limit:
        return Seen("broken", what + _left(stage))
    return Seen("kept", what)


def _left(stage: Stage) -> str:
    free = stage.control.free
    if free is None or free >= stage.pool.max_size:
        return ""
    return f", which had {free} left for this role"


def stops_at_limit(stage: Stage) -> Seen:
    limit = stage.pool.max_size
    if len(stage.held) < limit:
        return _NOT_EXHAUSTED
    more = stage.check_out(EXHAUSTED_TIMEOUT)
    stage.put_back(more.conn)
    count = stage.control.sessions()
    if more.conn or count > limit:
        return Seen("broken", f"one more {more}; {count} on the server")
    return judged(
        abs(more.seconds - more.timeout) <= LATE,
        f"it failed after {in_words(more.seconds)} {more.limit}; still {count} on the server",
    )


def names_holder(stage: Stage) -> Seen:
    if len(stage.held) < stage.pool.max_size:
        return _NOT_EXHAUSTED
    error = stage.check_out(timeout=0.1).error
    holders = stage.pool.holders() if isinstance(stage.pool, HardenedPool) else []
    for holder in holders:
        if repr(holder.thread) in error and str(holder.pid) in error:
            # The error would name a line of the project, but the drill's own threads run none.
            traced = ", with a record of where it was taken" if holder.frames else ""
            return Seen(
                "kept",
                f"{holder.who}, for {in_words(holder.seconds)}"
                f" (server process {holder.pid}{traced})",
            )
    return Seen("broken", f"the error only says: {error}")


_NOT_EXHAUSTED = Seen("skipped", "the pool could not be exhausted")


def returns(stage: Stage) -> Seen:
    count = len(stage.held)
    stage.put_back(*stage.held)
    stage.held.clear()
    again = stage.check_out_many(count)
    stage.put_back(*again)
    return judged(len(again) == count, f"{len(again)} of {count} could be checked out again")


def replaces_ended(stage: Stage) -> Seen:
    if not stage.pings:
        return _NO_PRE_PING
    ended = stage.control.terminate()
    stage.wait_for_sessions(lambda count: count == 0)
    checkout = stage.check_out(RESTART_TIMEOUT)
    stage.put_back(checkout.conn)
    in_time = checkout.seconds <= REPLACE_SECONDS + stage.control.connect_seconds
    return judged(
        in_time and not checkout.error, f"{ended} were ended; the next checkout {checkout}"
    )


_NO_PRE_PING = Seen("skipped", "pre-ping is off")


# Each of these runs in its own pool of one connection: more would not show more


def replaces_expired(stage: Stage) -> Seen:
    if stage.configured.value("recycle") == NEVER:
        return Seen("skipped", "recycle is off: no connection expires")
    configured = stage.pool.max_lifetime
    recycle = stage.pool.max_lifetime = min(RECYCLE, configured)
    old = stage.first()
    stage.put_back(old)
    sleep(recycle)
    checkout = stage.check_out(stage.step_timeout)
    age = f"idle past its recycle time of {shortened(recycle, configured)}"
    if checkout.conn is old:
        return Seen("broken", f"a connection that was {age} was handed out")
    return judged(not checkout.error, f"one was {age}; the next checkout {checkout}")


def survives_silent_network(stage: Stage) -> Seen:
    if not stage.pings:
        return _NO_PRE_PING
    conn = stage.first()
    # A socket whose peer never reads or answers acts like a network that drops every packet.
    silent, peer = socket.socketpair()
    stage.cleanup.callback(peer.close)  # ends a checkout that is still waiting
    os.dup2(silent.fileno(), conn.pgconn.socket, inheritable=False)
    silent.close()
    stage.put_back(conn)
    sleep(PING_AFTER + 0.1)
    timeout = min(FAULT_TIMEOUT, stage.pool.timeout)
    of = f"of {shortened(timeout, stage.pool.timeout)}"
    try:
        checkout = run_with_timeout(timeout + 1, lambda: stage.check_out(timeout))
    except TimeoutError:
        return Seen("broken", f"the next checkout still waited after {timeout + 1:.2f} s {of}")
    how = "failed" if checkout.error else "worked"
    return judged(
        checkout.seconds <= timeout + LATE,
        f"the next checkout {how} after {in_words(checkout.seconds)} {of}",
    )


def reclaims_leaked(stage: Stage) -> Seen:
    stage.put_back(stage.first())
    stage.cleanup.callback(gc.collect)
    thread = Thread(target=_leak_one, args=[stage.pool], name=f"{THREAD} leaking", daemon=True)
    thread.start()
    thread.join()
    checkout = stage.check_out(stage.step_timeout)
    if checkout.error:  # a garbage collection that may exceed the deadline runs after it
        checkout = stage.check_out(stage.step_timeout)
    return judged(not checkout.error, f"a thread leaked the only one; the next checkout {checkout}")


# What a request holds and what it leaves behind, through Django's wrapper as in a project


def releases(stage: Stage) -> Seen:
    if stage.configured.value("release") != "transaction":
        return Seen("skipped", "DB_POOL_RELEASE=request: it is returned when the request ends")
    wrapper = _opened(stage)
    with closing(wrapper):
        _ask(wrapper, "SELECT 1")
        after_query = _in_use(stage)
        wrapper.set_autocommit(False)
        _ask(wrapper, "SELECT 1")
        inside = _in_use(stage)
        wrapper.commit()
        wrapper.set_autocommit(True)
        after = _in_use(stage)
    return judged(
        (after_query, inside, after) == (0, 1, 0),
        f"{after_query} held after a query, {inside} in a transaction, {after} after it",
    )


def keeps_changed_session(stage: Stage) -> Seen:
    with closing(_opened(stage)) as wrapper:
        _ask(wrapper, CHANGE_SESSION)
        _ask(wrapper, "SELECT 1")
        found = _ask(wrapper, FIND_CHANGE)
    how = "finds" if found == "1" else "does not find"
    return judged(found == "1", f"a request {how} what it has set on its session")


def cleans_session(stage: Stage) -> Seen:
    if stage.configured.value("reset") == "never":
        return Seen("skipped", "DB_POOL_RESET=never")
    wrapper = _opened(stage)
    found = []
    for _ in range(2):
        with closing(wrapper):
            found.append(_ask(wrapper, FIND_CHANGE))
            _ask(wrapper, CHANGE_SESSION)
    how = "finds" if found[1] == "1" else "does not find"
    return judged(found[1] != "1", f"the next request {how} what a request has set on its session")


CHANGE_SESSION = "SELECT set_config('abs_orm_app.drill', '1', false)"
FIND_CHANGE = "SELECT current_setting('abs_orm_app.drill', true)"


def _opened(stage: Stage) -> Any:
    stage.put_back(stage.first())
    return stage.own_wrapper()


def _ask(wrapper: Any, statement: str) -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def _in_use(stage: Stage) -> int:
    return stage.pool.max_size - stage.pool.get_stats()["pool_available"]


def _leak_one(pool: AnyPool) -> None:
    # Django's connection wrapper is a cycle like this one: only the garbage collector frees it.
    cycle: list[Any] = [pool.getconn()]
    cycle.append(cycle)


def leaves_read_only(stage: Stage) -> Seen:
    """Make a session of the drill read-only; the server itself is not changed."""
    attrs = stage.configured.target_session_attrs
    if attrs not in ("", "read-write"):
        return Seen("skipped", f"with target_session_attrs={attrs} such a server is good enough")
    if not attrs and only_reads(stage.configured.alias, stage.configured.entry):
        return Seen("skipped", "the project writes nothing through this alias")
    conn = stage.first()
    if _is_read_only(conn) != "off":
        return Seen("skipped", "the server does not report whether it is read-only, or it is")
    conn.execute("SET default_transaction_read_only = on")
    stage.put_back(conn)
    sleep(MISPLACED_LIFE)
    checkout = stage.check_out(stage.step_timeout)
    if checkout.conn and _is_read_only(checkout.conn) == "on":
        return Seen("broken", "a connection that had become read-only was handed out again")
    return judged(
        not checkout.error,
        f"one session of the drill was made read-only; the next checkout {checkout}",
    )


def _is_read_only(conn: AnyConnection) -> str | None:
    return conn.info.parameter_status("default_transaction_read_only")


# This runs when all pools are closed


def leaves_nothing(stage: Stage) -> Seen:
    count = stage.wait_for_sessions(lambda count: count == 0)
    return judged(count == 0, f"{count} sessions of the drill are left")


IN_CONFIGURED_POOL = (
    Promise("size", "The pool fills to its size.", fills),
    Promise("overflow", "It grows to size + overflow.", grows),
    Promise("timeout", "It grows no further: one more checkout fails, on time.", stops_at_limit),
    Promise("explanation", "The error names who holds a connection.", names_holder),
    Promise("return", "All connections can be returned and checked out again.", returns),
    Promise("pre-ping", "Connections that the server ended are replaced.", replaces_ended),
)
IN_POOL_OF_ONE = (
    Promise("recycle", "An expired connection is not handed out.", replaces_expired),
    Promise("deadline", "The timeout holds when the network goes silent.", survives_silent_network),
    Promise("read-only", "It leaves a server that has become read-only.", leaves_read_only),
    Promise("leak", "A leaked connection frees its place in the pool.", reclaims_leaked),
    Promise("release", "A connection is returned after each transaction.", releases),
    Promise("pin", "A changed session stays with its request.", keeps_changed_session),
    Promise("session", "Nothing is left on a session.", cleans_session),
)
AT_THE_END = Promise("clean", "No session is left on the server.", leaves_nothing)
