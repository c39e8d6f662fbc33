"""Rules on a project that has installed the app, but does not use its pool."""

from __future__ import annotations

from collections.abc import Sequence

from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_mode, written_by_hand
from abs_orm_app.facts.databases import Configured

OUR_ENGINES = {
    "django.db.backends.postgresql": "abs_orm_app.backends.postgresql",
    "django.contrib.gis.db.backends.postgis": "abs_orm_app.backends.postgis",
}


def adoption_findings(databases: Sequence[Configured]) -> list[Finding]:
    """Findings on the engine and the pool of each alias, or on DATABASES as a whole."""
    if databases and all(database.is_empty for database in databases):
        return [databases_empty()]
    found = []
    for database in databases:
        if database.engine in OUR_ENGINES:
            found.append(djangos_engine(database))
        elif database.hardened and database.mode == "null" and written_by_hand(database):
            found.append(no_pool(database))
    return found


def databases_empty() -> Finding:
    return new_finding(
        "W002",
        "DATABASES is empty: this project has no database.",
        "Set it in the settings, after `from abs_orm_app.environment import database_from_env`:",
        fix='DATABASES = {"default": database_from_env()}',
    )


def djangos_engine(database: Configured) -> Finding:
    has = "has a pool of Django's own" if database.pools else "has no pool of this app"
    return new_finding(
        "I002",
        f"The engine is {database.engine}: the alias {has}.",
        "To use the pool of this app, change the engine (the other settings stay):",
        database.alias,
        fix=f'"ENGINE": "{OUR_ENGINES[database.engine]}"',
    )


def no_pool(database: Configured) -> Finding:
    return new_finding(
        "I002",
        "The engine can pool, but OPTIONS['pool'] is not set: each request opens a connection and"
        " closes it.",
        "To turn the pool on, set:",
        database.alias,
        fix=set_mode(database, "pool"),
    )
