"""What a request does: each gets its own rows, and never sees what another's session has."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any

import psycopg
from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError, connections
from django.db.transaction import TransactionManagementError
from psycopg_pool import PoolClosed

from tests.soak.world import ROLE, TENANTS, World
from tests.support.bytecodes import Interrupted
from tests.support.databases import ALIAS
from tests.support.sessions import POOL, Session

ROWS = 20
IMPATIENT = 0.05  # seconds
# What a fault may cost a request. A ValueError is a return of what was taken back meanwhile.
ERRORS = (
    psycopg.Error, DatabaseError, InterfaceError, TransactionManagementError, PoolClosed,
    ValueError, Interrupted,
)  # fmt: skip
INSERT = "INSERT INTO soaked VALUES (%s)"
# All state that a session can keep and that this soak makes.
STATE = """
    SELECT coalesce(current_setting('soak.client', true), ''), current_user::text,
        (SELECT string_agg(relname, ',') FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
        (SELECT string_agg(c, ',') FROM pg_listening_channels() AS c),
        (SELECT string_agg(objid::text, ',') FROM pg_locks
         WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT string_agg(name, ',') FROM pg_cursors WHERE is_holdable),
        (SELECT string_agg(name, ',') FROM pg_prepared_statements WHERE from_sql)"""
CLEAN = ("", ROLE, None, None, None, None, None)


class Client:
    """One who uses the pool, known by a number."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.random = random.Random(number)  # noqa: S311
        self.tasks: list[Callable[[Session], None]] = [
            self.write, self.write, self.write_in_a_block, self.write_many, self.copy_in,
            self.copy_out, self.read_by_cursor, self.set_variable, self.set_role,
            self.make_temporary, self.listen, self.lock, self.prepare,
        ]  # fmt: skip

    def live(self) -> None:
        """Requests, one after the other, until the soak is over."""
        while not self.world.over.is_set():
            with suppress(Interrupted):
                self._requests()

    def _requests(self) -> None:
        while not self.world.over.is_set():
            self.request()

    def request(self) -> None:
        """One request: a task, on a session that must be as new."""
        task = self.random.choice(self.tasks)
        self.world.holding.pop(get_ident(), None)
        try:
            self._do(task)
            self.world.sums.done[task.__name__] += 1
        except ERRORS as error:
            self.world.sums.done["errors of requests"] += 1
            self.world.sums.done[f"error: {type(error).__name__}"] += 1
        except BaseException as error:
            self.world.sums.violation("an error that no request may meet", repr(error))

    def _do(self, task: Callable[[Session], None]) -> None:
        if self.random.random() < 0.02:
            self.world.visit_doomed()
        session = self.world.begin()
        try:
            with self.world.in_time():
                found = self._ask(session, STATE)
            if found != CLEAN:
                self.world.sums.violation("the state of another", f"{self.number}: {found}")
            task(session)
        finally:
            session.end()

    def ask_in_a_handler(self) -> None:
        """With a pool alone on a connection of its own; an engine's is that of its thread."""
        if self.world.mode == POOL:
            session = self.world.begin()
            try:
                self.write(session)
            finally:
                session.end()
            return
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT %s", [self.number])
            self._expect("the answer of another", cursor.fetchone(), (self.number,))

    def _ask(self, session: Session, query: str, *params: object) -> Any:
        with session.cursor() as cursor:
            cursor.execute(query, params or None)
            return cursor.fetchone()

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.world.sums.violation(what, f"client {self.number}: {found!r} is not {expected!r}")

    def _numbers(self) -> list[int]:
        return [next(self.world.numbers) for _ in range(ROWS)]

    # Rows

    def write(self, session: Session) -> None:
        n = next(self.world.numbers)
        found = self._ask(session, f"{INSERT} RETURNING n", n)
        self.world.acknowledged.add(n)
        self._expect("the answer of another", found, (n,))

    def write_in_a_block(self, session: Session) -> None:
        """The backend of a transaction is nobody else's."""
        me, n = get_ident(), next(self.world.numbers)
        with session.atomic():
            try:
                try:
                    (backend,) = self._ask(session, "SELECT pg_backend_pid()")
                    self.world.holding[me] = backend
                    others = [t for t, b in self.world.holding.copy().items() if b == backend]
                    self._expect("a connection in two hands", others, [me])
                    self._ask(session, f"{INSERT} RETURNING n", n)
                finally:
                    self.world.holding.pop(me, None)  # before the connection can be returned
            finally:
                self.world.holding.pop(me, None)  # the first one may have been interrupted
        self.world.acknowledged.add(n)

    def write_many(self, session: Session) -> None:
        numbers = self._numbers()
        with session.cursor() as cursor:
            cursor.executemany(INSERT, [(n,) for n in numbers])
        self.world.acknowledged.update(numbers)

    def copy_in(self, session: Session) -> None:
        numbers = self._numbers()
        with session.cursor() as cursor, cursor.copy("COPY soaked FROM STDIN") as copy:
            for n in numbers:
                copy.write_row((n,))
        self.world.acknowledged.update(numbers)

    def copy_out(self, session: Session) -> None:
        query = f"COPY (SELECT {self.number}, n FROM generate_series(1, {ROWS}) AS n) TO STDOUT"
        with session.cursor() as cursor, cursor.copy(query) as copy:
            found = [tuple(map(int, row)) for row in copy.rows()]
        self._expect("the rows of another", found, [(self.number, n) for n in range(1, ROWS + 1)])

    def read_by_cursor(self, session: Session) -> None:
        found: list[Any] = []
        with session.server_cursor() as cursor:
            cursor.execute(f"SELECT {self.number}, n FROM generate_series(1, {ROWS}) AS n")
            while rows := cursor.fetchmany(7):
                found += rows
                if self.random.random() < 0.1:
                    return  # and never read on
        self._expect("the rows of another", found, [(self.number, n) for n in range(1, ROWS + 1)])

    # State of the session. What is left behind must be gone for the next one.

    def set_variable(self, session: Session) -> None:
        self._execute(session, f"SET soak.client = '{self.number}'")
        found = self._ask(session, "SELECT current_setting('soak.client', true)")
        self._expect("what this client has set", found, (str(self.number),))

    def set_role(self, session: Session) -> None:
        tenant = TENANTS[self.number % len(TENANTS)]
        self._execute(session, f"SET ROLE {tenant}")
        self._expect("its role", self._ask(session, "SELECT current_user::text"), (tenant,))
        if self.random.random() < 0.3:
            self._execute(session, "RESET ROLE")

    def make_temporary(self, session: Session) -> None:
        self._execute(session, f"CREATE TEMPORARY TABLE mine AS SELECT {self.number} AS owner")
        self._expect("its table", self._ask(session, "SELECT owner FROM mine"), (self.number,))

    def listen(self, session: Session) -> None:
        channel = f"channel_{self.number}"
        self._execute(session, f"LISTEN {channel}")
        (channels,) = self._ask(
            session, "SELECT string_agg(c, ',') FROM pg_listening_channels() AS c"
        )
        self._expect("its channel", channels, channel)
        self._execute(session, f"NOTIFY {channel}")

    def lock(self, session: Session) -> None:
        self._execute(session, f"SELECT pg_advisory_lock({self.number})")
        (locks,) = self._ask(
            session,
            "SELECT string_agg(objid::text, ',') FROM pg_locks"
            " WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        )
        self._expect("its lock", locks, str(self.number))

    def prepare(self, session: Session) -> None:
        self._execute(session, f"PREPARE mine AS SELECT {self.number}")
        self._expect("its statement", self._ask(session, "EXECUTE mine"), (self.number,))

    def _execute(self, session: Session, statement: str) -> None:
        with session.cursor() as cursor:
            cursor.execute(statement)


def threads(world: World, number: int) -> list[threading.Thread]:
    """So many clients in a thread each."""
    return [
        threading.Thread(target=Client(world, n).live, name=f"client {n}", daemon=True)
        for n in range(number)
    ]


def event_loop(world: World, first: int, number: int) -> threading.Thread:
    """A thread with so many async views; their queries run in threads of asgiref."""

    async def view(client: Client) -> None:
        while not world.over.is_set():
            sensitive = client.random.random() < 0.3
            query = sync_to_async(client.request, thread_sensitive=sensitive)
            if client.random.random() < 0.2:  # its client hangs up; the query goes on
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(query()), IMPATIENT)
                world.sums.done["async: clients that hung up"] += 1
            else:
                await query()
                world.sums.done["async: views"] += 1

    async def views() -> None:
        await asyncio.gather(*(view(Client(world, first + n)) for n in range(number)))

    return threading.Thread(target=lambda: asyncio.run(views()), name="event loop", daemon=True)
