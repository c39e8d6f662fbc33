"""The facts of an alias of DATABASES, for tests of rules."""

from __future__ import annotations

from typing import Any

from abs_orm_app.checks.finding import Finding
from abs_orm_app.environment import database_from_env
from abs_orm_app.facts.databases import Configured, configured
from tests.support.projects import OURS, database


def facts(engine: str = OURS, **changes: Any) -> Configured:
    """An alias whose entry the project wrote by hand."""
    given = {"ENGINE": engine, "NAME": "shop", "CONN_HEALTH_CHECKS": True, **changes}
    with database(given) as alias:
        return configured(alias)


def pool(engine: str = OURS, **parameters: Any) -> Configured:
    """The same with a pool; without parameters, `OPTIONS["pool"]` is True."""
    return facts(engine, OPTIONS={"pool": parameters or True})


def from_env(**environ: str) -> Configured:
    """An alias that the environment defines."""
    environ = {"DATABASE_URL": "postgresql://app:s3cret@/shop", **environ}
    with database(database_from_env(environ=environ)) as alias:
        return configured(alias)


def ids(found: list[Finding]) -> list[str]:
    return [finding.number for finding in found]
