"""The report on one alias: its settings, its pool, its server, and a connection test."""

from dataclasses import dataclass

from abs_orm_app.facts.active import Active, active
from abs_orm_app.facts.connecting import MARGIN, seconds_to_connect
from abs_orm_app.facts.connection_test import ConnectionTest, probe, try_setup
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.sessions import Fleet


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How a pool's connections were used while observed; `in_use` and `unused` are averages."""

    seconds: float
    in_use: float
    unused: float  # of those in use: not needed, but kept for their request
    waited: int  # requests that found no idle connection


@dataclass(frozen=True, kw_only=True)
class Report:
    """The facts about one alias. A Failure replaces missing facts; None: not applicable."""

    configured: Configured
    active: Active | Failure | None
    server: ServerFacts | Failure | None
    test: ConnectionTest | None = None
    usage: Usage | None = None  # None: it was not observed long enough
    now: Fleet | None = None  # the sessions, as the server sees them; None: it was not asked


def report(configured: Configured) -> Report:
    """Gather the report on one alias, within a deadline; failures are part of it.

    Opens one connection at a time, or two to a pooler, outside of the project's own pool.
    """
    pool, server, test, now = active(configured), None, None, None
    if configured.vendor == "postgresql":
        seconds = seconds_to_connect(configured) + MARGIN
        server, test, now = probe(configured, seconds)
        if not (test.failure or isinstance(pool, Failure)):
            test = try_setup(configured, seconds, test)
    return Report(configured=configured, active=pool, server=server, test=test, now=now)
