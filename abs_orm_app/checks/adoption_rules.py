"""Rules on a project that has installed the app, but does not use its pool."""

from collections.abc import Collection, Mapping, Sequence

from django.db import DEFAULT_DB_ALIAS

from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_mode, written_by_hand
from abs_orm_app.config.address import SCHEMES
from abs_orm_app.environment import SETTINGS
from abs_orm_app.facts.databases import Configured

OUR_ENGINES = {
    "django.db.backends.postgresql": "abs_orm_app.backends.postgresql",
    "django.contrib.gis.db.backends.postgis": "abs_orm_app.backends.postgis",
}


def adoption_findings(databases: Sequence[Configured]) -> list[Finding]:
    """Check the engine and the pool of each alias, or DATABASES as a whole."""
    if databases and all(database.is_empty for database in databases):
        empty = new_finding(
            "W002",
            "DATABASES is empty: this project has no database.",
            "Set it in the settings, after `from abs_orm_app.environment import"
            " database_from_env`:",
            fix='DATABASES = {"default": database_from_env()}',
        )
        return [empty]
    found = []
    for database in databases:
        if database.engine in OUR_ENGINES:
            found.append(djangos_engine(database))
        elif has_unused_pool(database):
            found.append(no_pool(database))
    return found


def has_unused_pool(database: Configured) -> bool:
    """Return True for this app's engine without a pool, unless the project chose that."""
    meant = database.mode == "pgbouncer" or database.mode_was_chosen
    wrong = not isinstance(database.entry["OPTIONS"], Mapping)  # E005 reports it
    return database.hardened and not (database.pools or meant or wrong)


def djangos_engine(database: Configured) -> Finding:
    has = "has a pool of Django's own" if database.pools else "has no pool of this app"
    engine = OUR_ENGINES[database.engine]
    remedy, fix = "change the engine (the other settings stay):", f'"ENGINE": "{engine}"'
    if written_by_hand(database) and not database.pools:
        remedy = "add below DATABASES:"
        fix = f'DATABASES["{database.alias}"]["ENGINE"] = "{engine}"; {set_mode(database, "pool")}'
    return new_finding(
        "I002",
        f"The engine is {database.engine}: the alias {has}.",
        f"To use the pool of this app, {remedy}",
        database.alias,
        fix=fix,
    )


def no_pool(database: Configured) -> Finding:
    does = (
        f"CONN_MAX_AGE={database.conn_max_age} keeps a connection for each thread"
        if database.mode == "persistent"
        else "each request opens a connection and closes it"
    )
    pool = "not set" if database.pool is None else repr(database.pool)
    remedy = (
        f"If you want no pool, say so in the entry: 'ABS_ORM_APP': {{'mode': {database.mode!r}}}."
        " Otherwise, turn the pool on below DATABASES:"
    )
    fix = set_mode(database, "pool")
    if not written_by_hand(database):
        remedy = "A line below database_from_env() replaced OPTIONS. Add to it there, as in:"
        fix = f'DATABASES["{database.alias}"]["OPTIONS"] |= {{"sslmode": "require"}}'
    return new_finding(
        "W006",
        f"No pool is in use: the engine is this app's, but OPTIONS['pool'] is {pool}, so {does}.",
        remedy,
        database.alias,
        fix=fix,
    )


def unread_settings(databases: Sequence[Configured], environ: Mapping[str, str]) -> list[Finding]:
    """Report variables in the environment, if DATABASES is not made from them."""
    given = _pool_settings(environ)
    aliases = [database.alias for database in databases if database.vendor == "postgresql"]
    entry = f"DATABASES[{(aliases or [DEFAULT_DB_ALIAS])[0]!r}]"
    why = f"{entry} is not made from variables"
    if not aliases:
        # Pool settings may be for another environment, but an address is for this one.
        scheme = environ.get("DATABASE_URL", "").partition("://")[0]
        if scheme not in (*SCHEMES, "embedded") or any(map(_is_in_memory, databases)):
            return []
        given = ["DATABASE_URL", *given]
        why = "no database of this project is PostgreSQL"
    if not given:
        return []
    unread = new_finding(
        "W007",
        f"Nothing reads {', '.join(given)}: {why}.",
        "Unset them, or make the entry from them, with `from abs_orm_app.environment import"
        " database_from_env` (it reads DATABASE_URL, or DB_HOST and DB_NAME):",
        fix=f"{entry} = database_from_env()",
    )
    return [unread]


def ungiven_settings(read: Collection[str], environ: Collection[str]) -> list[Finding]:
    """Report pool settings that are not among the variables that DATABASES was made from."""
    if not (lost := [name for name in _pool_settings(environ) if name not in read]):
        return []
    unread = new_finding(
        "W007",
        f"Nothing reads {', '.join(lost)}: the `environ` of database_from_env lacks it.",
        "Add it there, for example in the class that reads the environment, or unset it.",
    )
    return [unread]


def _is_in_memory(database: Configured) -> bool:
    """Return True for in-memory SQLite, which test settings use whatever DATABASE_URL says."""
    name = str(database.entry["NAME"])
    return database.vendor == "sqlite" and (name == ":memory:" or "mode=memory" in name)


def _pool_settings(environ: Collection[str]) -> list[str]:
    return [each.name for each in SETTINGS.values() if each.name in environ]
