"""Decides when a wrapper leases a connection of the pool, and when it returns it.

A wrapper leases a connection at the first query. In `request` mode it returns the connection when
the request ends, as Django does; in `transaction` mode as soon as nothing needs the session
(`lease.py`). Without a pool it behaves like Django's own.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

import psycopg
from django.db import Error, InterfaceError, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import CursorDebugWrapper, ServerSideCursor
from django.db.backends.postgresql.psycopg_any import register_tzloader
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from django.db.transaction import TransactionManagementError
from django.utils.asyncio import async_unsafe
from django.utils.functional import cached_property
from psycopg import OperationalError
from psycopg.pq import TransactionStatus

from abs_orm_app.backends.callers import (
    asked_by_project,
    is_between_requests,
    is_in_atomic_step,
)
from abs_orm_app.backends.cleaning import forget_handlers
from abs_orm_app.backends.cursors import LeasedCursorMixin, leased
from abs_orm_app.backends.handle import Handle
from abs_orm_app.backends.lease import (
    ALWAYS,
    ASKED,
    AUTOCOMMIT,
    HANDLE,
    LEASE,
    PINNED,
    Block,
    Lease,
    Step,
    User,
)
from abs_orm_app.backends.requests import thread, unending
from abs_orm_app.config.entry import app_options
from abs_orm_app.pool.entry import ENTRY, IN_TRANSACTION
from abs_orm_app.pool.holders import frames_of_caller
from abs_orm_app.pool.liveness import ROUND_TRIP, Answer, ping, server_has_closed
from abs_orm_app.pool.pre_ping import PING_TIMEOUT
from abs_orm_app.pool.registry import notice_fork

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper

    from abs_orm_app.backends.session_state import Change
    from abs_orm_app.pool.entry import AnyConnection
    from abs_orm_app.pool.pool import HardenedPool

    class Base(DatabaseWrapper):  # what django-stubs leave out
        _thread_ident: int

        def _close(self) -> None: ...
        def _configure_connection(self, connection: AnyConnection) -> bool: ...
        def _cursor(self, name: str | None = None) -> CursorWrapper: ...
        def _prepare_cursor(self, cursor: Any) -> CursorWrapper: ...
        def _set_autocommit(self, autocommit: bool) -> None: ...
else:
    Base = object

AT_ONCE = 0.0  # `close_at` of a connection that is closed when the request ends
_ENSURE_CONNECTION = BaseDatabaseWrapper.ensure_connection

UNFIT = frozenset({TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN})  # no statement can run


class LeasingMixin(Base):
    """Manages the leases of a wrapper whose `pool` is a `HardenedPool`."""

    if TYPE_CHECKING:

        def _find_pool(self) -> HardenedPool | None: ...

    _lease: Lease | None = None
    _bare: AnyConnection | None = None  # a connection outside of any pool
    _sharing: Block | None = None  # keeps the lease while threads share this wrapper
    _step: ref[Step] | None = None  # while this lives, a lease is being started
    _early = False  # release = "transaction"
    _is_manual = False  # the project has set autocommit off
    _familiar = False  # Django's `connect` has succeeded once with these settings
    _is_plain: ClassVar[bool] = True  # no subclass overrides how to connect

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = "abs_orm_app.", "django."
        cls._is_plain = all(
            str(getattr(getattr(cls, name, cls), "__module__", "")).startswith(own)
            for name in ("connect", "get_new_connection", "init_connection_state", "check_settings")
        )

    # Cached properties, because the pool's copies of a wrapper do not share those.

    @cached_property
    def _leases(self) -> set[Lease]:
        """The leases that were not returned yet."""
        return set()

    @cached_property
    def _blocks(self) -> set[ref[Block]]:
        """The blocks during which every leased connection is kept."""
        return set()

    # The handle

    @property
    def connection(self) -> AnyConnection | None:
        """psycopg's connection; None before the first query and after `close()`.

        A project gets a `Handle`, which keeps the lease, and starts one if there is none.
        """
        lease = self._lease
        if lease is None:
            return self._bare
        if asked_by_project() and not self._connecting:
            handle: AnyConnection | None = self._handle()
            return handle
        return None if lease.has_ended() else lease.connection

    @connection.setter
    def connection(self, connection: Any) -> None:
        lease, self._lease, self._bare = self._lease, None, None
        if type(connection) is Handle:
            connection = connection._lease and connection._lease.connection
        if lease is not None and lease.connection is not connection:
            lease.abandon()
        if hasattr(connection, ENTRY):
            last = getattr(connection, LEASE, None)
            is_its = last is not None and last.connection is connection and not last.has_ended()
            self._lease = last if is_its else self._new_lease(connection)
        else:
            self._bare = connection

    def _handle(self) -> Any:
        """Return the connection for a project; lease one if the last lease has ended by itself."""
        lease = self._held()
        for weak in list(lease.users) if lease is not None else ():
            if type(user := weak()) is Handle:
                return user  # or `connection.connection is connection.connection` would be False
        if self.closed_in_transaction:
            return None
        handle = Handle()
        with self.wrap_database_errors:
            self._claim(handle, checked=False)
        return handle

    def _new_lease(self, connection: Any) -> Lease:
        if connection_created.receivers:
            forget_handlers(connection)  # receivers add theirs again at each lease
        if self._early:
            wanted: Any = ALWAYS
        elif thread.in_request:
            wanted = ALWAYS if unending else thread.request
        else:
            wanted = connection._pool.queue.waiters
        lease = Lease(connection, wanted, self._leases, thread.request)
        if self._blocks:
            for weak in list(self._blocks):
                if (block := weak()) is not None:
                    block.join(lease)
        if self._step is not None and (step := self._step()) is not None:
            step.join(lease)
        return lease

    def _held(self) -> Lease | None:
        """The lease, if it has not ended."""
        lease = self._lease
        return None if lease is None or (lease.vote and lease.has_ended()) else lease

    @property
    def _connecting(self) -> bool:
        """True while a lease is being started and `connection_created` is being sent."""
        return self._step is not None and self._step() is not None

    # Leasing

    @async_unsafe
    def ensure_connection(self) -> None:
        """Like Django's. A project that calls it wants the connection, so the lease is pinned."""
        notice_fork()
        with self.wrap_database_errors:
            self._ensure_lease()
        self._note_who_asks()

    def _ensure_lease(self) -> None:
        if self._bare is None and self._held() is None:
            self._begin_lease()

    def _begin_lease(self) -> Lease | None:
        """Lease a connection; None without a pool."""
        last = self._lease
        # Test tools replace this method or `connect` to forbid queries.
        if BaseDatabaseWrapper.ensure_connection is not _ENSURE_CONNECTION or not self._familiar:
            super().ensure_connection()
        elif self.in_atomic_block and self.closed_in_transaction:
            raise ProgrammingError("Cannot open a new connection in an atomic block.")
        elif (connect := self.__dict__.get("connect")) is not None:
            connect()
        else:
            self._connect()
        lease = self._lease
        if lease is not None and lease is last and lease.has_ended():
            raise InterfaceError("connection already closed")  # by a replacement of `connect`
        return lease

    @async_unsafe
    def connect(self) -> None:
        """Like Django's. A project that calls it wants the connection, too."""
        notice_fork()
        self._connect()
        self._note_who_asks()

    def _note_who_asks(self) -> None:
        lease = self._held()
        if lease is None or lease.pinned is not None or self._connecting or not asked_by_project():
            return
        self._pin(ASKED)

    def _pin(self, why: Change) -> None:
        step = Step()
        try:
            with self.wrap_database_errors:
                lease = self._claim(step, checked=False) if self._bare is None else None
            if lease is not None:
                lease.pin(why)
        finally:
            step.leave()

    def _connect(self) -> None:
        if self._leases:
            for lease in list(self._leases):
                lease.finish_if_ended()  # its end may have been interrupted
        pool = self._find_pool()
        if pool is not None and self._familiar:
            self._take(pool)
            return
        release = app_options(self.settings_dict).get("release")
        self._early = pool is not None and release == "transaction"
        step, last = Step(), self._lease
        try:
            if pool is not None:
                self._step = ref(step)
            super().connect()
        except BaseException:
            if self._lease is not None and self._lease is not last:
                self._lease.end()
            raise
        if pool is not None:
            self._set_age()
            self._end_to_connect(step)
        self._familiar = pool is not None and self._is_plain

    def _take(self, pool: HardenedPool) -> None:
        """Do what is left of Django's `connect` for a connection that the pool has configured."""
        self._forget_blocks()
        self.errors_occurred = False
        self._set_age()
        if pool.closed:
            with suppress(OperationalError):  # closed meanwhile: `getconn` takes the next one
                pool.open()
        connection: Any = pool.getconn()
        lease: Lease | None = None
        try:
            lease = self._lease = self._new_lease(connection)
            autocommit = self.settings_dict["AUTOCOMMIT"]
            if connection.autocommit is not autocommit:
                connection.autocommit = autocommit
            self.autocommit = autocommit
            if connection_created.receivers:
                step = Step()
                self._step = ref(step)
                step.join(lease)
                connection_created.send(sender=self.__class__, connection=self)
                self._end_to_connect(step)
        except BaseException:
            if lease is not None:
                lease.end()  # not all receivers have handled it
            else:
                pool.end_checkout(connection, connection._pool_entry.checkout)
            raise
        self.run_on_commit = []

    def _forget_blocks(self) -> None:
        self.in_atomic_block = False
        self.savepoint_ids = []
        self.atomic_blocks = []
        self.needs_rollback = False
        self.closed_in_transaction = False

    def _end_to_connect(self, step: Step) -> None:
        """Receivers are called for each lease, so what they set does not pin it."""
        self._step = None
        lease = step._lease
        if lease is not None:
            lease.pinned = None
            step.quit()

    def _set_age(self) -> None:
        """Set `close_at` from CONN_MAX_AGE, which is 0 with a pool. Tests may patch it to None."""
        max_age = self.settings_dict["CONN_MAX_AGE"]
        self.close_at = (
            AT_ONCE if max_age == 0 else None if max_age is None else monotonic() + max_age
        )

    def _claim(self, user: User, *, checked: bool = True) -> Lease | None:
        """Return a lease that does not end before `user` leaves it; None without a pool.

        `checked`: replace a connection that broke while nothing needed its session.
        """
        notice_fork()
        while True:
            lease = self._held()
            is_new = lease is None
            if lease is None and (lease := self._begin_lease()) is None:
                return None
            if user.join(lease):
                if is_new or not checked or self._is_fit(lease):
                    return lease
                lease.end()

    def _is_fit(self, lease: Lease) -> bool:
        """False for a connection that broke while nothing needed its session.

        Also False for one that still executes an abandoned statement. This is checked before each
        statement, because afterwards it is unknown whether the statement has run: libpq reports a
        failed send as a success.

        Raises `OperationalError` if something needs the session: what was set on it is lost.
        """
        connection: Any = lease.connection
        if connection is None:
            return False
        now = monotonic()
        unused = now - lease.used_at
        lease.used_at = now
        status = connection.pgconn.transaction_status
        try:
            if status not in UNFIT and (unused < ROUND_TRIP or not connection._pool_entry.poll(0)):
                return True  # the server has sent nothing
        except RuntimeError:  # another thread, or a signal handler and its thread, poll at once
            return True
        is_alone = len(lease.users) <= 1  # at most the caller uses it
        if status == TransactionStatus.ACTIVE:
            return not (is_alone and connection.autocommit and lease.pinned is None)
        at_rest = connection.autocommit and status not in IN_TRANSACTION
        is_broken = status in UNFIT
        if not is_broken and (not at_rest or not is_alone or _still_answers(connection)):
            return True
        pinned = lease.pinned
        if (pinned is not None and pinned is not ASKED) or self._blocks:
            raise OperationalError(
                "the server has closed the connection, and the state of its session is lost"
                f" ({(pinned or PINNED).what}); close() or release() it, and start again"
            )
        return not at_rest

    def _leave_interrupted_block(self, frame: Any) -> None:
        """Leave a block of `atomic` that an exception has ended between two of its steps. Otherwise
        the next statements would be in a transaction that is never committed.

        `frame`: the caller's. It may be a signal handler's between two such steps: then the block
        continues.
        """
        lease = self._held()
        if lease is None or lease.pinned is HANDLE or not self.settings_dict["AUTOCOMMIT"]:
            return
        if is_in_atomic_step(frame):
            return
        connection: Any = lease.connection
        if connection.pgconn.transaction_status not in UNFIT:
            connection.rollback()
            connection.autocommit = self.autocommit = True
        self._forget_blocks()
        self.run_on_commit = []

    @async_unsafe
    def set_autocommit(
        self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False
    ) -> None:
        """Like Django's. Only `atomic` passes the second argument.

        Without a connection this only sets a flag: the next lease is in autocommit anyway, and
        `atomic` would have to wait for a connection here before its error is raised.
        """
        if autocommit and self.settings_dict["AUTOCOMMIT"] and self._waits_for_lease():
            self.validate_no_atomic_block()
            self.autocommit, self._is_manual = True, False
            if self.run_commit_hooks_on_set_autocommit_on:
                self.run_and_clear_commit_hooks()
                self.run_commit_hooks_on_set_autocommit_on = False
            return
        if autocommit and not self.settings_dict["AUTOCOMMIT"]:
            self._pin(AUTOCOMMIT)  # the next lease would not have it
        super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
        self._is_manual = not (autocommit or force_begin_transaction_with_broken_autocommit)

    def _waits_for_lease(self) -> bool:
        """True if there is a pool, and this wrapper has no connection of it now."""
        return self._bare is None and self._held() is None and self._find_pool() is not None

    @async_unsafe
    def get_autocommit(self) -> bool:
        """Like Django's, but in `transaction` mode it needs no connection for the answer."""
        if self._early and self.settings_dict["AUTOCOMMIT"] and self._held() is None:
            return True
        if not (self.autocommit or self.atomic_blocks or self._is_manual):
            self._leave_interrupted_block(sys._getframe(2))  # frame 1 is `async_unsafe`
        return super().get_autocommit()

    def _set_autocommit(self, autocommit: bool) -> None:
        step = Step()
        try:
            with self.wrap_database_errors:
                lease = self._claim(step) if self._bare is None else None
                if lease is None:
                    super()._set_autocommit(autocommit)
                else:
                    lease.connection.autocommit = autocommit  # type: ignore[union-attr]
        finally:
            step.leave()

    def _commit(self) -> None:
        self._finish(super()._commit)  # type: ignore[misc]

    def _rollback(self) -> None:
        self._finish(super()._rollback)  # type: ignore[misc]

    def _finish(self, end: Callable[[], None]) -> None:
        """Commit or roll back; do nothing if the lease has ended: there is no transaction then."""
        lease, step = self._lease, Step()
        try:
            if lease is None or step.join(lease):
                end()
        finally:
            step.leave()

    # Cursors

    def _cursor(self, name: str | None = None) -> CursorWrapper:
        if self._bare is not None:
            return super()._cursor(name)
        with self.wrap_database_errors:
            notice_fork()
            try:
                cursor = self._leased_cursor(name)
            except BaseException:
                if (lease := self._lease) is not None:
                    lease.reclaim()
                raise
            return super()._cursor(name) if cursor is None else self._prepare_cursor(cursor)

    def _leased_cursor(self, name: str | None) -> Any:
        """Return a cursor that is a user of its lease; None without a pool."""
        while True:
            lease = self._lease
            is_new = lease is None or (lease.vote and lease.has_ended())
            if is_new:
                lease = self._begin_lease()
            if lease is None:
                return None
            try:
                cursor = self.create_cursor(name)
            except OperationalError:  # the connection is closed
                if is_new or self._is_fit(lease):
                    raise
                lease.end()
                continue
            if cursor is None:
                continue
            if is_new:
                return cursor
            if self._is_fit(lease):
                off = not cursor.connection.autocommit
                if off and not (self.atomic_blocks or self._is_manual):
                    self._leave_interrupted_block(sys._getframe())
                return cursor
            lease.end()

    @async_unsafe
    def create_cursor(self, name: str | None = None) -> Any:
        """Like Django's; None if the lease has ended meanwhile."""
        lease = self._lease
        if lease is None:
            return super().create_cursor(name)
        connection: Any = lease.connection
        if connection is None:
            return None
        if not name:
            cursor = connection.cursor()
        elif self.settings_dict["OPTIONS"].get("server_side_binding") is True:
            cursor = connection.cursor(name, scrollable=False, withhold=connection.autocommit)
        else:
            cursor = leased(ServerSideCursor)(
                connection, name=name, scrollable=False, withhold=connection.autocommit
            )
        # Otherwise a factory that the project has set made it.
        if isinstance(cursor, LeasedCursorMixin) and not cursor.join(lease):
            psycopg.Cursor.close(cursor)  # type: ignore[arg-type]  # send nothing: it has another holder
            return None
        if self.timezone != connection._pristine.time_zone:
            register_tzloader(self.timezone, cursor)
        return cursor

    def ensure_timezone(self) -> bool:
        """Called when the settings change: the next lease runs all of Django's `connect` again."""
        self._familiar = False
        return super().ensure_timezone()

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        return LeasedCursorWrapper(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        return LeasedCursorDebugWrapper(cursor, self)

    # Returning

    def close_if_health_check_failed(self) -> None:
        if self._lease is None:
            super().close_if_health_check_failed()

    def is_usable(self) -> bool:
        """Like Django's. It leases a connection if the last lease has ended by itself."""
        if self._lease is None:
            return super().is_usable()
        step = Step()
        try:
            return self._claim(step, checked=False) is not None and super().is_usable()
        except (Error, psycopg.Error):
            return False
        finally:
            step.leave()

    def close_if_unusable_or_obsolete(self) -> None:
        """At the start and the end of a request: return the pool's connection."""
        if self.in_atomic_block:
            self._forget_left_blocks()
        if self.close_at != AT_ONCE or self._bare is not None:
            super().close_if_unusable_or_obsolete()
        elif self._leases or (self._lease is not None and self.in_atomic_block):
            self.close()
        else:
            self._lease = None  # it has ended by itself

    def _forget_left_blocks(self) -> None:
        """Between two requests no block is open: forget those that an exception has left behind."""
        blocks: list[Any] = self.atomic_blocks
        is_tests = any(block._from_testcase for block in blocks)
        request = self._lease.request if self._lease is not None else ALWAYS
        if self._bare is None and not is_tests and is_between_requests(sys._getframe(), request):
            self._forget_blocks()

    @async_unsafe
    def close(self) -> None:
        if self.in_atomic_block:
            self._forget_left_blocks()
        lease = self._lease
        if lease is None and not self._leases:
            super().close()
            return
        self.validate_thread_sharing()
        self.run_on_commit = []
        if self.closed_in_transaction:
            return
        notice_fork()  # in a fork, this ends the lease without using the pool
        try:
            with self.wrap_database_errors:
                for lease in list(self._leases):
                    lease.end()
        finally:
            if self.in_atomic_block:
                self.closed_in_transaction = True
                self.needs_rollback = True
            else:
                self._lease = None

    @async_unsafe(
        "release() returns the connection of its own thread, and async code runs queries in other"
        " threads: use `await sync_to_async(release)()`."
    )
    def release(self) -> None:
        """Return the connection now; see `abs_orm_app.backends.release`."""
        self.validate_thread_sharing()
        blocks: list[Any] = self.atomic_blocks
        if self.in_atomic_block and not all(block._from_testcase for block in blocks):
            raise TransactionManagementError(
                f"the connection of {self.alias!r} cannot be released in an atomic block:"
                " call release() before it begins, or after it ends"
            )
        if self.in_atomic_block or self.allow_thread_sharing:
            return
        lease = self._held()
        if why := self._why_not_released(lease):
            raise TransactionManagementError(
                f"the connection of {self.alias!r} cannot be released: {why}"
            )
        if lease is not None:
            self.close()  # a subclass may forget there what it has set on the session

    def _why_not_released(self, lease: Lease | None) -> str | None:
        if self._blocks:
            return "it is in a pinned() block"
        connection = lease.connection if lease is not None else None
        if lease is None or connection is None:
            return None
        if lease.has_portals():
            return "a server-side cursor is open (an iterator() that was not exhausted?)"
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.ACTIVE:
            return "a statement is still being executed (or a stream() or copy() is open)"
        if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
            return "it is in a transaction: commit or roll back first"
        if (autocommit := self.autocommit) is not self.settings_dict["AUTOCOMMIT"]:
            # The next lease would have the alias's setting, and would commit its statements.
            return f"set_autocommit({autocommit}) is in effect: set it back first"
        return None

    @contextmanager
    @async_unsafe(
        "pinned() keeps the connection of its own thread, and async code runs queries in other"
        " threads: use it in the function that sync_to_async() calls."
    )
    def pinned(self) -> Iterator[None]:
        """Keep the connection for the block; see `abs_orm_app.backends.pinned`."""
        self.validate_thread_sharing()
        pool = self.pool
        traces = pool is not None and pool.leak_seconds is not None
        block = Block(PINNED, frames_of_caller() if traces else None)
        try:
            self._keep(block)
            yield
        finally:
            self._let_go(block)

    def inc_thread_sharing(self) -> None:
        """Keep the connection: one thread must not return it while another one uses it."""
        super().inc_thread_sharing()
        if self._sharing is None:
            self._sharing = Block(None)
            self._keep(self._sharing)

    def dec_thread_sharing(self) -> None:
        super().dec_thread_sharing()
        if (block := self._sharing) is not None and not self.allow_thread_sharing:
            self._sharing = None
            self._let_go(block)

    def _keep(self, block: Block) -> None:
        blocks = self._blocks
        blocks.add(ref(block, blocks.discard))
        if (lease := self._held()) is not None:
            block.join(lease)

    def _let_go(self, block: Block) -> None:
        for weak in list(self._blocks):
            if weak() is block:
                self._blocks.discard(weak)
        block.leave()

    def validate_thread_sharing(self) -> None:
        if self._thread_ident != get_ident():
            super().validate_thread_sharing()

    def hang_up(self) -> None:
        """Close the connection, if it is a pool's, and leave its atomic block.

        It is not returned or rolled back, because that would wait for a server that may be hung.
        """
        lease, self._lease = self._lease, None
        if lease is not None:
            connection = lease.abandon()
            if connection is not None:
                connection._pool = None
                connection.close()
            self.in_atomic_block = False
            self.run_on_commit = []


def _still_answers(connection: Any) -> bool:
    """Check an idle connection that has something to read. May take `PING_TIMEOUT` seconds."""
    # The server may have sent its last message without having closed the socket yet.
    return (
        not server_has_closed(connection, connection._pool_entry.poll)
        and ping(connection, PING_TIMEOUT) is Answer.ALIVE
    )


class _HandleMixin:
    """A cursor of Django whose `connection` is a `Handle` for the project."""

    cursor: Any
    db: Any

    @property
    def connection(self) -> AnyConnection:
        wrapper = self.db
        asked = wrapper._lease is not None and not wrapper._connecting and asked_by_project()
        connection: AnyConnection = wrapper._handle() if asked else self.cursor.connection
        return connection


class LeasedCursorWrapper(_HandleMixin, CursorWrapper):
    """Django's cursor wrapper."""


class LeasedCursorDebugWrapper(_HandleMixin, CursorDebugWrapper):
    """Django's cursor wrapper that logs the queries."""
