"""Leases keep their promises after random steps of three threads, chosen by hypothesis.

Some steps are interrupted, garbage is collected by another thread, and a second alias has a pool.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ClassVar, TypeVar

import pytest
from django.core import signals
from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction
from django.db.transaction import TransactionManagementError
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pytest_django.plugin import DjangoDbBlocker

from abs_orm_app.backends import pinned, release
from tests.support.bytecodes import BACKENDS, Interrupted, acting, throw
from tests.support.databases import ALIAS, Database, ask, held
from tests.support.pools import APP
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server(
    sql=[
        "CREATE FUNCTION hide(value text) RETURNS text LANGUAGE sql"
        " AS $$ SELECT set_config('app.tenant', value, false) $$"
    ]
)

T = TypeVar("T")
ACTORS = 3
BESIDE = "beside"  # another alias
PATIENCE = 60.0  # seconds for one step
TENANT = "SELECT current_setting('app.tenant', true)"
TEMPORARY = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()"
SERIES = "SELECT n FROM generate_series(1, 5000) AS n"

which_actor = st.integers(0, ACTORS - 1)


@dataclass
class Session:
    """What a thread must find on its session."""

    tenant: str = ""
    temporary: bool = False


class Actor:
    """A thread that answers requests, with its wrapper; and what is known of both."""

    def __init__(self) -> None:
        self.steps: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.begin()

    def begin(self) -> None:
        """Nothing is known of a session that has not begun."""
        self.has_lease = self.changed = False
        self.session = Session()
        self.atomic: Any = None
        self.before: Session | None = None  # at the begin of the atomic block, if one is open
        self.iterations: list[Any] = []
        self.block: ExitStack | None = None  # of `pinned()`

    def _run(self) -> None:
        # Or what it holds unused may go to a request that waits.
        signals.request_started.send(sender=type(self))
        while step := self.steps.get():
            step()

    def do(self, function: Callable[[], T]) -> T:
        """Call a function in the thread, and return or raise what it returns or raises."""
        outcome: list[Any] = []
        done = threading.Event()

        def step() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))
            done.set()

        self.steps.put(step)
        assert done.wait(PATIENCE), "a step that does not end"
        value, error = outcome[0]
        if error is not None:
            raise error
        result: T = value
        return result

    def ask(self, statement: str = "SELECT pg_backend_pid()", *params: Any) -> Any:
        value = self.do(lambda: ask(connections[ALIAS], statement, *params))
        self.has_lease = True
        return value

    @property
    def is_pinned(self) -> bool:
        """Something needs its session."""
        return bool(
            self.changed
            or self.before is not None
            or self.iterations
            or (self.block is not None and self.has_lease)
        )

    def settle(self, mode: str) -> None:
        """After a step: has the connection gone back?"""
        if mode == "transaction" and not self.is_pinned:
            self.has_lease = False
            self.session = Session()

    def end(self) -> None:
        """End the request, whatever is open."""

        def end() -> None:
            self.iterations.clear()
            wrapper = connections[ALIAS]
            if self.before is not None:
                wrapper.needs_rollback = True
                self.atomic.__exit__(None, None, None)
            if self.block is not None:
                self.block.close()
            wrapper.close()
            connections[BESIDE].close()

        self.do(end)
        self.begin()


class LeaseMachine(RuleBasedStateMachine):
    """Three threads on a pool of three; each step is one of one thread."""

    server: ClassVar[Server]
    mode: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(self.server, self.mode)
        self.wrapper = self.database(
            OPTIONS={"pool": {"min_size": 1, "max_size": ACTORS, "timeout": PATIENCE / 2}}
        )
        self.database(
            BESIDE,
            OPTIONS={"application_name": BESIDE, "pool": {"min_size": 1, "max_size": ACTORS}},
        )
        self.actors = [Actor() for _ in range(ACTORS)]

    def teardown(self) -> None:
        for actor in self.actors:
            actor.end()
            actor.steps.put(None)
            actor.thread.join(PATIENCE)
        self.database.remove()

    @rule(which=which_actor)
    def query(self, which: int) -> None:
        actor = self.actors[which]
        self.finds_its_session(actor)
        actor.settle(self.mode)

    @rule(which=which_actor, tenant=st.sampled_from("abc"))
    def set_tenant(self, which: int, tenant: str) -> None:
        actor = self.actors[which]
        actor.ask("SELECT set_config('app.tenant', %s, false)", tenant)
        actor.changed, actor.session.tenant = True, tenant

    @rule(which=which_actor)
    def make_temporary_table(self, which: int) -> None:
        actor = self.actors[which]
        actor.ask("CREATE TEMPORARY TABLE IF NOT EXISTS mine (n int)")
        actor.changed = actor.session.temporary = True

    @rule(which=which_actor, tenant=st.sampled_from("xyz"))
    def set_tenant_unseen(self, which: int, tenant: str) -> None:
        """In a function, as `pinned()` is there for."""
        actor = self.actors[which]
        if actor.block is not None:
            actor.ask("SELECT hide(%s)", tenant)
            actor.session.tenant = tenant

    @rule(which=which_actor)
    def begin(self, which: int) -> None:
        actor = self.actors[which]
        if actor.before is None:
            actor.atomic = transaction.atomic(ALIAS)
            actor.do(actor.atomic.__enter__)
            actor.has_lease = True
            actor.before = Session(actor.session.tenant, actor.session.temporary)

    @rule(which=which_actor, commits=st.booleans())
    def end_transaction(self, which: int, commits: bool) -> None:
        actor = self.actors[which]
        if actor.before is None or actor.iterations:
            return
        if not commits:
            actor.do(lambda: transaction.set_rollback(True, using=ALIAS))
            actor.session = actor.before
        actor.do(lambda: actor.atomic.__exit__(None, None, None))
        actor.before = None
        actor.settle(self.mode)

    @rule(which=which_actor)
    def iterate(self, which: int) -> None:
        actor = self.actors[which]

        def rows() -> Any:
            with connections[ALIAS].chunked_cursor() as cursor:
                cursor.execute(SERIES)
                yield from cursor

        def start() -> Any:
            iteration = rows()
            assert next(iteration) == (1,)
            return iteration

        actor.iterations.append(actor.do(start))
        actor.has_lease = True

    @rule(which=which_actor, finishes=st.booleans())
    def end_iteration(self, which: int, finishes: bool) -> None:
        actor = self.actors[which]
        if actor.iterations:
            iteration = actor.iterations.pop()
            if finishes:
                assert actor.do(lambda: sum(1 for _ in iteration)) == 4999
            actor.do(iteration.close)
            actor.settle(self.mode)

    @rule(which=which_actor)
    def leave_an_iteration_to_the_collector(self, which: int) -> None:
        actor = self.actors[which]
        if actor.iterations:
            actor.iterations.pop()
            gc.collect()
            actor.settle(self.mode)

    @rule(which=which_actor, at=st.integers(0, 700))
    def interrupt(self, which: int, at: int) -> None:
        """A time limit ends a query at a bytecode, and the request."""
        actor = self.actors[which]

        def query() -> None:
            with suppress(Interrupted, DatabaseError), acting(at, throw, BACKENDS):
                ask(connections[ALIAS], "CREATE TEMPORARY TABLE theirs (n int)")

        actor.do(query)
        actor.end()

    @rule(which=which_actor)
    def use_the_other_alias(self, which: int) -> None:
        def query() -> Any:
            return ask(connections[BESIDE], "SHOW application_name")

        assert self.actors[which].do(query) == BESIDE

    @rule(which=which_actor)
    def pin(self, which: int) -> None:
        actor = self.actors[which]
        if actor.block is None:
            actor.block = ExitStack()
            actor.do(lambda: actor.block.enter_context(pinned(ALIAS)))  # type: ignore[union-attr]

    @rule(which=which_actor)
    def unpin(self, which: int) -> None:
        actor = self.actors[which]
        if actor.block is not None:
            actor.do(actor.block.close)
            actor.block = None
            actor.settle(self.mode)

    @rule(which=which_actor)
    def release(self, which: int) -> None:
        actor = self.actors[which]
        if actor.before is not None or actor.block is not None or actor.iterations:
            with pytest.raises(TransactionManagementError):
                actor.do(lambda: release(ALIAS))
        else:
            actor.do(lambda: release(ALIAS))
            actor.has_lease = actor.changed = False
            actor.session = Session()

    @rule(which=which_actor)
    def end_request(self, which: int) -> None:
        self.actors[which].end()

    @rule(which=which_actor)
    def end_thread(self, which: int) -> None:
        """Without a word."""
        actor, self.actors[which] = self.actors[which], Actor()
        actor.steps.put(None)
        actor.thread.join(PATIENCE)
        assert not actor.thread.is_alive()
        actor.begin()  # nothing refers to its wrapper, which is a cycle
        wait_until(lambda: collect() and held(self.wrapper) == self.expected(), "its slot")

    @rule()
    def end_sessions(self) -> None:
        """The server ends them all. Who needs nothing of its session gets no error."""
        self.server.terminate(APP)
        for actor in self.actors:
            if actor.is_pinned:
                with pytest.raises((DatabaseError, InterfaceError, OperationalError)):
                    actor.ask()
                actor.end()
            else:
                actor.session = Session()
                self.finds_its_session(actor)
                actor.settle(self.mode)

    def finds_its_session(self, actor: Actor) -> None:
        assert (actor.ask(TENANT) or "") == actor.session.tenant
        assert bool(actor.ask(TEMPORARY)) == actor.session.temporary

    def expected(self) -> int:
        if self.mode == "transaction":
            return sum(actor.is_pinned for actor in self.actors)
        return sum(actor.has_lease for actor in self.actors)

    @invariant()
    def no_more_is_held_than_is_needed(self) -> None:
        assert held(self.wrapper) == self.expected()

    @invariant()
    def what_was_set_is_there(self) -> None:
        for actor in self.actors:
            if actor.is_pinned:
                self.finds_its_session(actor)


def collect() -> bool:
    gc.collect()
    return True


@pytest.mark.timeout(600)
def test_the_promises_hold_after_each_step(
    shared: Server, release: str, django_db_blocker: DjangoDbBlocker
) -> None:
    LeaseMachine.server, LeaseMachine.mode = shared, release
    LeaseMachine.TestCase.settings = settings(
        max_examples=8,
        phases=[Phase.generate],  # a story on a real server takes long to shrink
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with django_db_blocker.unblock():
        LeaseMachine.TestCase("runTest").runTest()
