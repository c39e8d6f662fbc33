"""Checks whether this process can serve from its databases: a view for a load balancer.

    path("healthz/", health.view)
    path("healthz/", health.view, {"aliases": ["default"], "seconds": 1.0})

It checks out a connection like a request, pings the server, and answers in time, whatever hangs.
While a pool has no connection left, it uses one of its own, so that a burst does not take the
process out of the load balancer. It depends on nothing else. See `docs/monitoring.md`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from math import inf
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from abs_orm_app.backends.pooled import PooledMixin
from abs_orm_app.facts.active import current_pools
from abs_orm_app.facts.databases import configured
from abs_orm_app.integrations.unpooled import Latest, run_unpooled
from abs_orm_app.integrations.views import outside_transactions
from abs_orm_app.pool.causes import ask, cause_of, why_waiting
from abs_orm_app.pool.liveness import Answer, ping
from abs_orm_app.pool.roles import Role
from abs_orm_app.pool.server_errors import FULL, classify

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

Serving = Literal["ok", "degraded", "failed"]

SECONDS = 2.0  # the longest that a check may take
LATELY = 1.0  # seconds for which a checkout by a request proves that the server answers
PING = 0.5  # seconds that a server gets to answer at least, even if no caller waits any more


class NotServedError(OperationalError):
    """All connections are in use, and none is returned."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """An alias's health: `degraded` serves, but requests wait; `failed` does not serve in time."""

    state: Serving
    waiting: int = 0  # requests that waited before the check
    reason: str = ""  # why it is not ok, as a keyword such as "exhausted", "read-only" or "hung"
    error: BaseException | None = None  # why it failed; not for the public


def check(aliases: Iterable[str], seconds: float = SECONDS) -> dict[str, Health]:
    """Check these aliases, or this one, concurrently, within `seconds` altogether.

    Raises `ImproperlyConfigured` for an unknown alias.
    """
    deadline = monotonic() + seconds
    asked = [aliases] if isinstance(aliases, str) else list(aliases)
    if unknown := [alias for alias in asked if alias not in connections]:
        there = ", ".join(map(repr, connections))
        raise ImproperlyConfigured(
            f"DATABASES has no alias {unknown[0]!r} to be checked: it has {there}."
        )
    probes = {alias: _start(alias, seconds) for alias in asked}
    return {alias: _health(alias, probe, deadline) for alias, probe in probes.items()}


@never_cache
@require_safe
@login_not_required
@outside_transactions
def view(
    _request: HttpRequest, aliases: Iterable[str] | None = None, seconds: float = SECONDS
) -> JsonResponse:
    """Answer 200 if all these aliases (or all of DATABASES) serve, even if requests wait, else 503.

    `{"status": "ok", "databases": {"default": "ok"}, "reasons": {}}`: no more, so that it may be
    public. The reasons are those of the metric `django_db_pool_trouble`.
    """
    found = check(connections if aliases is None else aliases, seconds)
    states = {health.state for health in found.values()}
    worst = next((state for state in ("failed", "degraded") if state in states), "ok")
    databases = {alias: health.state for alias, health in found.items()}
    reasons = {alias: health.reason for alias, health in found.items() if health.reason}
    body = {"status": worst, "databases": databases, "reasons": reasons}
    return JsonResponse(body, status=503 if worst == "failed" else 200)


def _health(alias: str, probe: Future[int], deadline: float) -> Health:
    try:
        waiting = probe.result(max(0.0, deadline - monotonic()))
    except Exception as error:  # the driver, the settings or a password provider may raise anything
        return Health(state="failed", reason=_reason(alias, error), error=error)
    if (wants_primary := _writes_fail(alias)) is not None:
        # An alias that was never written to may be meant for a replica.
        state: Serving = "failed" if wants_primary else "degraded"
        return Health(state=state, reason="read-only", waiting=waiting)
    if waiting:
        return Health(state="degraded", reason=_reason(alias), waiting=waiting)
    return Health(state="ok")


def _reason(alias: str, error: BaseException | None = None) -> str:
    """Return the pool's cause, if it has one; else the error's."""
    pool = current_pools().get(alias)
    if pool is not None and (cause := cause_of(pool.core)):
        return cause.name
    if error is None or isinstance(error, NotServedError):
        return why_waiting(pool.core).name if pool is not None else "exhausted"
    return "no answer" if isinstance(error, TimeoutError) else classify(error).name


def _writes_fail(alias: str) -> bool | None:
    """If all servers refuse this alias's writes, return whether the pool had a primary."""
    pool = current_pools().get(alias)
    roles = {entry.role for entry in list(pool.entries)} if pool is not None else set()
    if pool is None or not roles or not roles <= {Role.STANDBY, Role.READ_ONLY}:
        return None
    if pool.placement.expectation.wants_primary:
        return True
    return False if configured(alias).wanted_role == "primary" else None


# A probe returns how many requests waited. Without our pool it may hang, so all callers share one
# probe per alias. (The process id in the key makes a forked child start without any.)
_probes: dict[tuple[int, str], Future[int]] = {}


def _start(alias: str, seconds: float) -> Future[int]:
    """Start a probe, or join the running one."""
    key = (os.getpid(), alias)
    mine: Future[int] = Future()
    running = mine if _is_ours(alias) else _probes.setdefault(key, mine)
    if running is mine:
        thread = Thread(target=_run, args=(key, mine, seconds), name=f"{alias}-health", daemon=True)
        thread.start()
    return running


def _is_ours(alias: str) -> bool:
    wrapper = connections[alias]
    return isinstance(wrapper, PooledMixin) and bool(wrapper.settings_dict["OPTIONS"].get("pool"))


def _run(key: tuple[int, str], future: Future[int], seconds: float) -> None:
    try:
        waiting = _probe(key[1], seconds)
    except BaseException as error:
        _probes.pop(key, None)
        future.set_exception(error)
    else:
        _probes.pop(key, None)
        future.set_result(waiting)


def _probe(alias: str, seconds: float) -> int:
    """Use the alias once; return how many requests waited before. Raises any error that occurs."""
    # Imported here: without psycopg_pool, the URLs can still be imported, and the checks report it.
    from psycopg_pool import ConnectionPool

    from abs_orm_app.pool.pool import HardenedPool

    wrapper: Any = connections[alias]  # this thread's own
    pool = getattr(wrapper, "pool", None)
    waiting = 0
    if isinstance(pool, HardenedPool | ConnectionPool) and not pool.closed:
        stats = pool.get_stats()
        # While the pool may still grow, they wait only for a connection that is being opened.
        if stats["pool_size"] >= stats["pool_max"]:
            waiting = stats["requests_waiting"]
    if isinstance(pool, HardenedPool):
        _ask_through(pool, seconds)
        return waiting
    try:
        _select(wrapper)
    finally:
        wrapper.close()
    return waiting


def _select(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute(f"SELECT 1{wrapper.features.bare_select_suffix}")


def _ask_through(pool: HardenedPool, seconds: float) -> None:
    """Return once the server has answered on a connection of the pool, or outside of a full pool.

    Raises `PoolTimeout` if it has not answered, `NotServedError` if a full pool serves no request.
    """
    from psycopg_pool import PoolTimeout

    pool.open()
    deadline = monotonic() + seconds
    late: Exception = PoolTimeout("the server did not answer")
    while (left := deadline - monotonic()) > seconds / 10:
        if len(pool.in_use) >= pool.max_size:
            _ask_beside(pool, left)
            return
        try:
            conn = pool.getconn(timeout=left / 2)  # by then, it may be full
        except PoolTimeout as error:
            late = error
            continue
        try:
            # A connection that came late still gets time to answer, and is not closed for that.
            if ping(conn, max(deadline - monotonic(), PING)) is Answer.ALIVE:
                return
            conn.close()  # a late answer would go to its next query
        finally:
            pool.return_unchanged(conn)
    raise late


# The results of checks outside of full pools.
_latest: WeakKeyDictionary[HardenedPool, Latest[None]] = WeakKeyDictionary()


def _ask_beside(pool: HardenedPool, seconds: float) -> None:
    """Return if requests get connections of a full pool within its timeout, and the server answers.

    The check does not queue: it would take a connection from a request, and might wait longer than
    a load balancer does. While connections are being returned, it need not query the server.
    """
    began = monotonic()
    served_at = max((entry.taken_at for entry in tuple(pool.in_use)), default=inf)
    if began - served_at > pool.timeout:
        ask(pool.core)
        raise NotServedError(f"no request got a connection for {pool.timeout:g} s")
    if began - served_at > LATELY:
        latest = _latest.setdefault(pool, Latest())
        latest.get(lambda: _select_beside(pool.name, began + seconds - monotonic()), seconds)


def _select_beside(alias: str, seconds: float) -> None:
    try:
        run_unpooled(
            lambda: _select(connections[alias]), purpose="health", seconds=max(seconds, 0.0)
        )
    except OperationalError as error:
        if classify(error).problem is not FULL:  # a server that reports this is up
            raise
