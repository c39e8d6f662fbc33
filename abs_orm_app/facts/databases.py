"""Reads each alias of DATABASES into facts. Nothing here connects."""

import inspect
import ipaddress
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from abs_orm_app.backends.routing import is_written
from abs_orm_app.config.address import POSTGIS, POSTGRESQL
from abs_orm_app.config.entry import AppOptions, OwnSettings, app_options, options_of
from abs_orm_app.config.texts import printable
from abs_orm_app.environment import NEVER, POOL_PARAMETERS, SETTINGS, PoolSettings
from abs_orm_app.facts.secrets import scrub

Value = int | float | str | bool | None

# A misspelled ENGINE is compared with these.
ENGINES = (
    POSTGRESQL,
    POSTGIS,
    "django.db.backends.postgresql",
    "django.contrib.gis.db.backends.postgis",
)


# The server's role for each `target_session_attrs`; the other values accept either.
_ROLES: dict[str, Literal["primary", "standby"]] = {
    "read-write": "primary",
    "primary": "primary",
    "standby": "standby",
    "prefer-standby": "standby",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    name: str  # of the variable, with its prefix
    field: str  # of PoolSettings, or the same as `option`
    value: Value  # None: not used in this mode
    source: str  # "environment", ".env", "default"; "settings" for an entry written by hand
    option: str | None  # None: not used in this mode


@dataclass(frozen=True, kw_only=True)
class Configured:
    """One alias of DATABASES."""

    alias: str
    engine: str
    vendor: str  # "postgresql", "sqlite" ...; "" for an engine that cannot be loaded
    can_pool: bool  # the engine supports OPTIONS["pool"]
    hardened: bool  # the engine is this app's own
    error: str  # why the engine cannot be loaded, or ""

    mode: str  # "pool", "persistent", "pgbouncer" or "null"
    mode_was_chosen: bool  # ABS_ORM_APP["mode"] asks for no pool, as DB_POOL_MODE can
    pool: Any = field(repr=False)  # OPTIONS["pool"], unchanged
    entry: Mapping[str, Any] = field(repr=False)  # of DATABASES, unchanged
    conn_max_age: float | None  # seconds; None: no limit
    health_checks: bool
    settings: tuple[Setting, ...]
    server_side_cursors: bool
    prepares: bool  # psycopg prepares statements
    atomic_requests: bool

    address: str
    address_source: str  # such as "DATABASE_URL (environment)"
    user_source: str  # such as "DB_USER (.env)"
    password_source: str
    prefix: str  # of the variables
    host: str
    password: str = field(repr=False)
    open_files: tuple[str, ...]  # variables whose secret file all accounts can read
    sslmode: str
    connect_timeout: float | None  # seconds
    keepalives: bool  # of TCP; on by default in libpq
    target_session_attrs: str  # of libpq; "" if not set
    written: bool  # the project is known to write through it
    embedded: bool

    @property
    def is_empty(self) -> bool:
        """True for `DATABASES = {}`, for which Django uses a dummy engine."""
        return self.engine == "django.db.backends.dummy"

    @property
    def pools(self) -> bool:
        """True if the alias has a PostgreSQL pool in this process, opened or not."""
        return self.mode == "pool" and self.vendor == "postgresql"

    @property
    def wanted_role(self) -> Literal["primary", "standby", "either"]:
        """From `target_session_attrs`; without it, a primary if the project writes to the alias."""
        if not self.target_session_attrs:
            return "primary" if self.written else "either"
        return _ROLES.get(self.target_session_attrs, "either")

    def value(self, field: str) -> Value:
        """Return the value of a field of PoolSettings; None if it is not used or not shown."""
        return next((s.value for s in self.settings if s.field == field), None)


def variables_read() -> set[str] | None:
    """Return the variables, without prefix, that DATABASES was made from; None: no entry was."""
    entries = [app_options(connections.settings[alias]) for alias in connections]
    made = [extra["sources"].items() for extra in entries if "sources" in extra]
    return {name for each in made for name, source in each if source != "default"} if made else None


def configured_databases(aliases: Iterable[str] | None = None) -> list[Configured]:
    return [configured(alias) for alias in (connections if aliases is None else aliases)]


def configured(alias: str) -> Configured:
    """Return the facts about one alias, even if its settings are wrong."""
    entry = connections.settings[alias]
    engine, error = None, ""
    try:
        wrapper = connections[alias]
        engine, entry = type(wrapper), wrapper.settings_dict
    except (ImproperlyConfigured, ImportError) as problem:
        error = _engine_error(entry["ENGINE"], problem)
    given = entry
    options = options_of(given)
    entry = {**given, "OPTIONS": options}
    extra = app_options(entry)
    mode = _mode(entry, extra)
    hardened = engine is not None and any(
        base.__module__.startswith("abs_orm_app.") for base in engine.__mro__
    )
    return Configured(
        alias=alias,
        engine=entry["ENGINE"],
        vendor=engine.vendor if engine else "",
        can_pool=hasattr(engine, "pool"),
        hardened=hardened,
        error=error,
        mode=mode,
        mode_was_chosen=extra.get("mode", "pool") != "pool",
        pool=options.get("pool"),
        entry=given,
        conn_max_age=entry["CONN_MAX_AGE"],
        health_checks=bool(entry["CONN_HEALTH_CHECKS"]),
        settings=_settings(entry, extra, mode, hardened=hardened),
        server_side_cursors=not entry.get("DISABLE_SERVER_SIDE_CURSORS", False),
        # psycopg prepares no statements if it merges the parameters into the query itself.
        prepares=options.get("prepare_threshold") is not None
        and bool(options.get("server_side_binding")),
        atomic_requests=bool(entry["ATOMIC_REQUESTS"]),
        address=printable(scrub(_address(entry, extra))),
        address_source=_address_source(extra),
        user_source=_part_source(alias, entry, extra, "user"),
        password_source=_part_source(alias, entry, extra, "password"),
        prefix=extra.get("prefix", ""),
        host=printable(scrub(str(entry["HOST"] or options.get("host") or ""))),
        password=entry["PASSWORD"] or options.get("password") or "",
        open_files=_open_files(extra),
        sslmode=options.get("sslmode") or os.environ.get("PGSSLMODE", ""),
        connect_timeout=_number(options.get("connect_timeout")),
        keepalives=str(options.get("keepalives", 1)) != "0",
        target_session_attrs=str(
            options.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS", "")
        ),
        written=is_written(alias, entry),
        embedded=bool(extra.get("embedded")),
    )


def pool_settings(database: Configured) -> PoolSettings:
    """Return the pool's settings, else the environment's. Raises ValueError for an invalid pool."""
    if database.mode != "pool":
        return PoolSettings.from_env(database.prefix)
    names = [name for name, variable in SETTINGS.items() if variable.shown == "always"]
    values = {name: database.value(name) for name in names}
    if not all(isinstance(value, int | float) for name, value in values.items() if name != "mode"):
        raise ValueError(
            f"The pool of DATABASES[{database.alias!r}] is not valid: see `manage.py check`."
        )
    return PoolSettings(**values)  # type: ignore[arg-type]


def _address(entry: Mapping[str, Any], extra: AppOptions) -> str:
    if extra.get("embedded"):
        return f"the embedded server in {extra['embedded']}"
    if service := entry["OPTIONS"].get("service"):
        return f"service {service}"
    port = f":{entry['PORT']}" if entry["PORT"] else ""
    where = f" on {entry['HOST']}{port}" if entry["HOST"] or port else ""
    return f"{entry['NAME']}{where}" + (f" as {entry['USER']}" if entry["USER"] else "")


def _address_source(extra: AppOptions) -> str:
    sources = extra.get("sources", {})
    for name in ("DATABASE_URL", "DB_HOST", "DB_NAME"):
        if sources.get(name, "default") != "default":
            return f"{extra['variables'][name]} ({sources[name]})"
    return "the default (no address is set in the environment)" if sources else "settings"


def _part_source(alias: str, entry: Mapping[str, Any], extra: AppOptions, part: str) -> str:
    """Return where the user or the password comes from, such as "DB_USER (.env)"."""
    name = {"user": "DB_USER", "password": "DB_PASSWORD"}[part]
    sources, variables = extra.get("sources", {}), extra.get("variables", {})
    if extra.get(f"{part}_provider"):
        name = "DB_PASSWORD_PROVIDER"
    for variable in (name, "DATABASE_URL"):
        given = variable != "DATABASE_URL" or entry[part.upper()]
        if given and sources.get(variable, "default") != "default":
            return f"{variables[variable]} ({sources[variable]})"
    if entry[part.upper()]:
        return "the default URL" if sources else f"DATABASES[{alias!r}]['{part.upper()}']"
    if entry["OPTIONS"].get(part):
        return f"DATABASES[{alias!r}]['OPTIONS']['{part}']"
    libpqs = {"user": "PGUSER", "password": "PGPASSWORD"}[part]
    if libpqs in os.environ:
        return f"{libpqs} (environment)"
    return {"user": "this account of the system", "password": "nowhere: none is set"}[part]


def _open_files(extra: AppOptions) -> tuple[str, ...]:
    """Return the variables whose files every account of this machine can read."""
    files = {"DATABASE_URL": extra.get("url_file"), "DB_PASSWORD": extra.get("password_file")}
    variables = extra.get("variables", {})
    return tuple(
        variables.get(name, f"{name}_FILE") for name, path in files.items() if _is_open(path)
    )


def _is_open(path: str | None) -> bool:
    try:
        return path is not None and bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False


def _engine_error(engine: str, problem: Exception) -> str:
    """Return why an engine cannot be loaded, as a sentence."""
    cause = problem.__cause__
    if isinstance(cause, ImportError) and f"{engine}.base.".startswith(f"{cause.name}."):
        close = get_close_matches(engine, ENGINES, n=1, cutoff=0.8)
        return f"There is no {engine!r}" + (f" (did you mean {close[0]!r}?)." if close else ".")
    # If an import inside an engine fails, Django names it only in the cause of its own error.
    text = str(cause if isinstance(cause, ImportError) else problem)
    return printable(scrub(text.strip().partition("\n")[0]))


def _mode(entry: Mapping[str, Any], extra: AppOptions) -> str:
    if entry["OPTIONS"].get("pool"):
        return "pool"
    if extra.get("mode") == "pgbouncer":
        return "pgbouncer"
    return "null" if entry["CONN_MAX_AGE"] == 0 else "persistent"


def _settings(
    entry: Mapping[str, Any], extra: AppOptions, mode: str, *, hardened: bool
) -> tuple[Setting, ...]:
    values = _values(entry, extra, mode)
    by_hand = "sources" not in extra
    sources, variables = extra.get("sources", {}), extra.get("variables", {})

    rows = []
    for field_name, variable in SETTINGS.items():
        name = variable.name
        source = "settings" if by_hand else sources.get(name, "default")
        shown = {
            "always": True,
            "our pool": mode == "pool" and hardened,
            "if set": source not in ("settings", "default"),
        }
        if shown[variable.shown]:
            rows.append(
                Setting(
                    name=variables.get(name, extra.get("prefix", "") + name),
                    field=field_name,
                    value=values.get(field_name),
                    source=source,
                    option=variable.options.get(mode),
                )
            )
    return (*rows, *_other_pool_options(entry["OPTIONS"].get("pool")))


def _values(entry: Mapping[str, Any], extra: AppOptions, mode: str) -> dict[str, Value]:
    """Return the values in an entry of DATABASES, by field of PoolSettings."""
    ours = {name: extra.get(name, SETTINGS[name].default) for name in OwnSettings.__annotations__}
    values: dict[str, Value] = {
        **ours,  # type: ignore[dict-item]
        "mode": mode,
        "no_cursors": bool(entry.get("DISABLE_SERVER_SIDE_CURSORS")),
    }
    if mode == "pool":
        given = entry["OPTIONS"]["pool"]
        pool = pool_parameters() | (given if isinstance(given, dict) else {})
        values |= pool_values(pool, pre_ping=bool(entry["CONN_HEALTH_CHECKS"]))
    elif mode == "persistent":
        age = entry["CONN_MAX_AGE"]
        values |= {
            "pre_ping": bool(entry["CONN_HEALTH_CHECKS"]),
            "recycle": NEVER if age is None else age,
        }
    return values


def pool_parameters() -> dict[str, Any]:
    """Return psycopg_pool's parameters and their defaults; none if it is not installed."""
    try:
        from psycopg_pool import ConnectionPool
    except ImportError:
        return {}
    parameters = inspect.signature(ConnectionPool).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def pool_values(parameters: Mapping[str, Any], *, pre_ping: bool) -> dict[str, Value]:
    """Convert a pool's parameters to values by field of PoolSettings, in the order of SETTINGS."""
    values: dict[str, Value] = {
        name: _shown(parameters[parameter])
        for name, parameter in POOL_PARAMETERS.items()
        if parameter in parameters
    }
    size, most = parameters.get("min_size"), parameters.get("max_size")
    most = size if most is None else most
    values["overflow"] = most - size if isinstance(size, int) and isinstance(most, int) else None
    values["pre_ping"] = pre_ping
    if values.get("recycle") == math.inf:
        values["recycle"] = NEVER
    return {name: values[name] for name in SETTINGS if name in values}


def _other_pool_options(pool: Any) -> list[Setting]:
    given = pool if isinstance(pool, dict) else {}
    others = given.keys() - POOL_PARAMETERS.values()
    return [
        Setting(
            name=f"pool.{name}",
            field=f"pool.{name}",
            value=_shown(given[name]),
            source="settings",
            option=f"pool.{name}",
        )
        for name in sorted(others, key=str)
    ]


def _shown(value: Any) -> Value:
    """Return a number unchanged; of anything else, which may be a secret, only the type."""
    return value if isinstance(value, int | float | None) else f"<{type(value).__name__}>"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def is_local(host: str) -> bool:
    if not host or host == "localhost" or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
