"""When a wrapper leases a connection of the pool, and when it returns it.

It leases a connection at the first query. In `request` mode it returns it when the request ends, as
Django does; in `transaction` mode as soon as nothing needs the session (`lease.py`). Without a pool
it behaves as Django's own.
"""

from __future__ import annotations

import sys
import threading
from _thread import get_ident
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.signals import request_finished, request_started
from django.db import ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import CursorDebugWrapper, ServerSideCursor
from django.db.backends.postgresql.psycopg_any import register_tzloader
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from django.db.transaction import TransactionManagementError
from django.utils.asyncio import async_unsafe
from psycopg import OperationalError
from psycopg.pq import TransactionStatus

from abs_orm_app.backends.cursors import LeasedCursorMixin, leased
from abs_orm_app.backends.lease import HANDLE, PINNED, Lease, is_at_rest
from abs_orm_app.backends.receivers import unwatch, watch
from abs_orm_app.config.entry import app_options
from abs_orm_app.pool.constants import ROUND_TRIP
from abs_orm_app.pool.entry import frames_of_caller
from abs_orm_app.pool.liveness import answers, has_ended
from abs_orm_app.pool.pre_ping import PING_TIMEOUT
from abs_orm_app.pool.registry import notice_fork

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper

    from abs_orm_app.pool.entry import AnyConnection, Frames
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
CONNECT = "connect"  # the user of a lease that is being begun
_ENSURE_CONNECTION = BaseDatabaseWrapper.ensure_connection

# Their code asks for a handle and does not keep it. Other code may, so its lease is pinned.
TRUSTED = frozenset({"abs_orm_app", "debug_toolbar", "django", "sentry_sdk"})
_BETWEEN = frozenset({"django.utils.asyncio", "django.utils.connection"})  # the caller is outside


_thread = threading.local()


def _begin_request(**_: object) -> None:
    _thread.in_request = True


def _end_request(**_: object) -> None:
    _thread.in_request = False


request_started.connect(_begin_request)
request_finished.connect(_end_request)


def asked_by_project() -> bool:
    """True if the code that called the wrapper may keep the handle that it gets."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals is globals():  # the wrapper's own steps
        frame = frame.f_back
    while frame is not None:
        name: str = frame.f_globals.get("__name__") or ""
        if name not in _BETWEEN:
            return name.partition(".")[0] not in TRUSTED
        frame = frame.f_back
    return False


class LeasingMixin(Base):
    """Keeps the lease of a wrapper whose `pool` is a `HardenedPool`."""

    if TYPE_CHECKING:

        def _find_pool(self) -> HardenedPool | None: ...

    _lease: Lease | None = None
    _bare: AnyConnection | None = None  # a connection of no pool
    _kept = 0  # the number of `pinned()` blocks, and of threads that share this wrapper
    _pinned_at: Frames | None = None  # the stack of the first of these blocks, if tracing is on
    _early = False  # release = "transaction"
    _familiar = False  # Django's `connect` has succeeded once with these settings
    _connecting = False  # Django's `connect` is taking a connection from the pool
    _is_plain: ClassVar[bool] = True  # no subclass overrides how to connect

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = "abs_orm_app.", "django."
        cls._is_plain = all(
            str(getattr(getattr(cls, name, cls), "__module__", "")).startswith(own)
            for name in ("connect", "get_new_connection", "init_connection_state", "check_settings")
        )

    # The handle

    @property
    def connection(self) -> AnyConnection | None:
        """psycopg's connection; None without a lease. A project that asks for it pins the lease."""
        lease = self._lease
        if lease is None:
            return self._bare
        if lease.change is None and not lease.receiving and not lease.done and asked_by_project():
            if not lease.begin(HANDLE):  # another thread has ended it just now
                return None
            lease.note(HANDLE)
            lease.users.pop(HANDLE, None)
        return lease.connection

    @connection.setter
    def connection(self, connection: AnyConnection | None) -> None:
        lease, self._lease, self._bare = self._lease, None, None
        if lease is not None and lease.connection is not connection:
            lease.abandon()
        if hasattr(connection, "_pool_entry"):
            self._lease = getattr(connection, "_lease", None) or self._new_lease(connection)
        else:
            self._bare = connection

    def _new_lease(self, connection: Any) -> Lease:
        lease = Lease(
            connection,
            early=self._early,
            kept=self._kept,
            in_request=getattr(_thread, "in_request", False),
        )
        lease.changed_at = self._pinned_at
        if self._connecting:
            _begin_to_connect(lease)
        return lease

    def _held(self) -> Lease | None:
        """The lease, if it has not ended."""
        lease = self._lease
        return None if lease is None or lease.done else lease

    # Leasing

    def ensure_connection(self) -> None:
        """As Django's. A project that calls it wants the handle: the lease is pinned."""
        notice_fork()
        with self.wrap_database_errors:
            self._ensure_lease()
        self._note_who_asks()

    def _ensure_lease(self) -> None:
        if self._bare is not None or self._held() is not None:
            return
        # Test tools replace either, to forbid queries.
        if BaseDatabaseWrapper.ensure_connection is not _ENSURE_CONNECTION or not self._familiar:
            super().ensure_connection()
            return
        if self.in_atomic_block and self.closed_in_transaction:
            raise ProgrammingError("Cannot open a new connection in an atomic block.")
        connect = self.__dict__.get("connect")
        connect() if connect is not None else self._connect()

    @async_unsafe
    def connect(self) -> None:
        """As Django's. A project that calls it wants the handle, too."""
        notice_fork()
        self._connect()
        self._note_who_asks()

    def _note_who_asks(self) -> None:
        lease = self._held()
        if lease is None or lease.asked or not asked_by_project():
            return
        while not lease.begin(HANDLE):  # another thread has ended it just now
            with self.wrap_database_errors:
                self._ensure_lease()
            lease = self._held() or lease
        lease.ask()
        lease.users.pop(HANDLE, None)

    def _connect(self) -> None:
        pool = self._find_pool()
        if pool is not None and self._familiar:
            self._take(pool)
            return
        release = app_options(self.settings_dict).get("release")
        self._early = pool is not None and release == "transaction"
        self._connecting = pool is not None
        try:
            super().connect()
        finally:
            self._connecting = False
            if (lease := self._lease) is not None:
                _end_to_connect(lease)
        self._familiar = pool is not None and self._is_plain
        if pool is not None:
            self._set_age()

    def _take(self, pool: HardenedPool) -> None:
        """What remains of Django's `connect` for a connection that the pool has configured."""
        self.in_atomic_block = False
        self.savepoint_ids = []
        self.atomic_blocks = []
        self.needs_rollback = False
        self.closed_in_transaction = False
        self.errors_occurred = False
        self._set_age()
        if pool.closed:
            pool.open()
        connection: Any = pool.getconn()
        lease = self._lease = self._new_lease(connection)
        autocommit = self.settings_dict["AUTOCOMMIT"]
        if connection.autocommit is not autocommit:
            connection.autocommit = autocommit
        self.autocommit = autocommit
        if connection_created.receivers:
            _begin_to_connect(lease)
            try:
                connection_created.send(sender=self.__class__, connection=self)
            finally:
                _end_to_connect(lease)
        self.run_on_commit = []

    def _set_age(self) -> None:
        """Set `close_at` from CONN_MAX_AGE, which is 0 with a pool. Tests may patch it to None."""
        max_age = self.settings_dict["CONN_MAX_AGE"]
        self.close_at = (
            AT_ONCE if max_age == 0 else None if max_age is None else monotonic() + max_age
        )

    def _claim(self, user: object) -> Lease | None:
        """Return a lease that does not end before `user` leaves it; None without a pool."""
        notice_fork()
        while True:
            lease = self._lease
            if lease is None or lease.done:
                self._ensure_lease()
                lease = self._lease
                if lease is None:
                    return None
                if lease.begin(user):
                    return lease
            elif lease.begin(user):  # first: no other thread ends it while it is looked at
                try:
                    if self._is_fit(lease):
                        return lease
                except BaseException:
                    lease.leave(user)
                    raise
                lease.end()

    def _is_fit(self, lease: Lease) -> bool:
        """False for a connection that broke while nothing needed its session.

        It is checked before each statement, because afterwards nothing can tell whether a
        statement has run: libpq reports a send that failed as one that worked.

        Raises `OperationalError` where something needs the session: what was set on it is gone.
        """
        connection: Any = lease.connection
        if connection is None:
            return False
        now = monotonic()
        unused = now - lease.used_at
        lease.used_at = now
        if not connection.closed and (unused < ROUND_TRIP or not connection._pool_entry.poll(0)):
            return True  # the server has sent nothing
        at_rest = is_at_rest(connection)
        in_use = not at_rest or len(lease.users) > 1  # one is the caller
        if not connection.closed and (in_use or _still_answers(connection)):
            return True
        if lease.change is not None or lease.kept:
            what = lease.change.what if lease.change else "pinned()"
            raise OperationalError(
                "the server has closed the connection, and what its session had is gone"
                f" ({what}); close or release() it, and begin again"
            )
        return not at_rest

    def get_autocommit(self) -> bool:
        """As Django's; in `transaction` mode it needs no connection for the answer."""
        if self._early and self._held() is None:
            autocommit: bool = self.settings_dict["AUTOCOMMIT"]
            return autocommit
        return super().get_autocommit()

    def _set_autocommit(self, autocommit: bool) -> None:
        user = object()
        with self.wrap_database_errors:
            lease = self._claim(user) if self._bare is None else None
            if lease is None:
                super()._set_autocommit(autocommit)
                return
            try:
                lease.connection.autocommit = autocommit  # type: ignore[union-attr]
            finally:
                lease.leave(user)

    # Cursors

    def _cursor(self, name: str | None = None) -> CursorWrapper:
        if self._bare is not None:
            return super()._cursor(name)
        user = object()
        with self.wrap_database_errors:
            lease = self._claim(user)
            if lease is None:
                return super()._cursor(name)
            try:
                return self._prepare_cursor(self.create_cursor(name))
            finally:
                lease.users.pop(user, None)
                if not lease.users:
                    lease.leave(user)

    def create_cursor(self, name: str | None = None) -> Any:
        lease = self._lease
        if lease is None:
            return super().create_cursor(name)
        connection: Any = lease.connection
        if not name:
            cursor = connection.cursor()
        elif self.settings_dict["OPTIONS"].get("server_side_binding") is True:
            cursor = connection.cursor(name, scrollable=False, withhold=connection.autocommit)
        else:
            cursor = leased(ServerSideCursor)(
                connection, name=name, scrollable=False, withhold=connection.autocommit
            )
        if isinstance(cursor, LeasedCursorMixin):  # else of a factory that the project has set
            cursor.join(lease)
        if self.timezone != connection._pristine.time_zone:
            register_tzloader(self.timezone, cursor)
        return cursor

    def ensure_timezone(self) -> bool:
        """Called when the settings change: forget what was compared before."""
        self._familiar = False
        return super().ensure_timezone()

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        return LeasedCursorWrapper(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        return LeasedCursorDebugWrapper(cursor, self)

    # Giving back

    def close_if_health_check_failed(self) -> None:
        if self._lease is None:
            super().close_if_health_check_failed()

    def is_usable(self) -> bool:
        lease, user = self._held(), object()
        if lease is None:
            return super().is_usable()
        try:
            return lease.begin(user) and super().is_usable()
        finally:
            lease.leave(user)

    def close_if_unusable_or_obsolete(self) -> None:
        """At the beginning and the end of a request: return the pool's connection."""
        if self._lease is None or self.close_at != AT_ONCE:
            super().close_if_unusable_or_obsolete()
        elif not self._lease.done:
            self.close()

    @async_unsafe
    def close(self) -> None:
        lease = self._lease
        if lease is None:
            super().close()
            return
        self.validate_thread_sharing()
        self.run_on_commit = []
        if self.closed_in_transaction or lease.done:
            return
        notice_fork()  # which ends the lease, without a word to the pool
        try:
            with self.wrap_database_errors:
                lease.end()
        finally:
            if self.in_atomic_block:
                self.closed_in_transaction = True
                self.needs_rollback = True
            else:
                self._lease = None

    @async_unsafe(
        "release() returns the connection of its own thread, and async code queries in others: use"
        " `await sync_to_async(release)()`."
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
        if self._kept:
            return "it is in a pinned() block"
        connection = lease.connection if lease is not None else None
        if lease is None or connection is None:
            return None
        if lease.has_portals():
            return "a server-side cursor is open (an iterator() that has not come to its end?)"
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.ACTIVE:
            return "a statement is still being executed (or a stream() or copy() is open)"
        if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
            return "it is in a transaction: commit or roll back first"
        if (autocommit := self.autocommit) is not self.settings_dict["AUTOCOMMIT"]:
            # The next lease would have the alias's own, and its statements would be committed.
            return f"set_autocommit({autocommit}) is in effect: set it back first"
        return None

    @contextmanager
    @async_unsafe(
        "pinned() keeps the connection of its own thread, and async code queries in others: use it"
        " in the function that sync_to_async() calls."
    )
    def pinned(self) -> Iterator[None]:
        """Keep the connection for the block; see `abs_orm_app.backends.pinned`."""
        self.validate_thread_sharing()
        if not self._kept and (pool := self.pool) is not None and pool.leak_seconds is not None:
            self._pinned_at = frames_of_caller()
        self._keep()
        try:
            yield
        finally:
            self._let_go(PINNED)
            if not self._kept:
                self._pinned_at = None

    def inc_thread_sharing(self) -> None:
        """Keep the connection: one thread must not return it while another one uses it."""
        super().inc_thread_sharing()
        self._keep()

    def dec_thread_sharing(self) -> None:
        super().dec_thread_sharing()
        self._let_go(None)

    def _keep(self) -> None:
        self._kept += 1
        if (lease := self._held()) is not None:
            lease.kept += 1
            lease.changed_at = lease.changed_at or self._pinned_at
            if not lease.begin(self):  # it ended just now
                return
            lease.users.pop(self, None)

    def _let_go(self, change: Any) -> None:
        self._kept -= 1
        if (lease := self._held()) is not None:
            lease.kept -= 1
            lease.left = lease.left or change
            lease.leave(self)

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
    return not has_ended(connection, connection._pool_entry.poll) and answers(
        connection, PING_TIMEOUT
    )


def _begin_to_connect(lease: Lease) -> None:
    """From here to `_end_to_connect`, changes do not pin: they are made again for each lease."""
    lease.users[CONNECT] = False
    lease.receiving = True
    watch(lease)


def _end_to_connect(lease: Lease) -> None:
    lease.receiving = False
    unwatch(lease.connection)
    lease.users.pop(CONNECT, None)


class _HandleMixin:
    """A cursor of Django that pins the lease when the project asks it for the handle."""

    cursor: Any

    @property
    def connection(self) -> AnyConnection:
        lease: Lease | None = getattr(self.cursor, "_lease", None)
        if lease is not None and lease.change is None and asked_by_project():
            lease.note(HANDLE)
        connection: AnyConnection = self.cursor.connection
        return connection


class LeasedCursorWrapper(_HandleMixin, CursorWrapper):
    """Django's."""


class LeasedCursorDebugWrapper(_HandleMixin, CursorDebugWrapper):
    """Django's, which logs the queries."""
