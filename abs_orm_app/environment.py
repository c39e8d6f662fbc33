"""Reads the DB_* variables into PoolSettings and into one entry of DATABASES.

    DATABASES = {"default": database_from_env()}

`docs/settings.md` lists the variables.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast, get_args

from abs_orm_app.config.address import (
    DATABASE_URL,
    DB_PASSWORD_PROVIDER,
    PARTS,
    read_address,
    running,
    with_default_options,
)
from abs_orm_app.config.entry import KEY, AppOptions, Mode, OwnSettings, Release, Reset
from abs_orm_app.config.unread import unread_variables
from abs_orm_app.config.variables import (
    Reader,
    SettingsError,
    Variable,
    one_of,
    read_env_file,
    seconds,
    setting,
    true_or_false,
    whole_number,
)

__all__ = [
    "NEVER",
    "PLACEHOLDER_PASSWORDS",
    "POOL_PARAMETERS",
    "SETTINGS",
    "VARIABLES",
    "Mode",
    "PoolSettings",
    "SettingsError",
    "database_from_env",
    "pool_processes",
    "read_env_file",
    "unknown_variables",
]

MOST_CONNECTIONS = 262143  # PostgreSQL's upper limit for max_connections
DAY = 86400.0  # seconds
NEVER = -1  # recycle
PLACEHOLDER_PASSWORDS = frozenset({"change-me"})  # in .env.example


def _recycle(text: str) -> int:
    if text.strip() == str(NEVER):
        return NEVER
    try:
        return whole_number(1, 2**31 - 1)(text)
    except ValueError:
        raise ValueError("is not a whole number of seconds, 1 or more, or -1 for never") from None


DB_POOL_PROCESSES = Variable[int | None](
    name="DB_POOL_PROCESSES",
    parse=whole_number(1, MOST_CONNECTIONS),
    default=None,
    prefixed=False,
)


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    mode: Mode = setting(
        "DB_POOL_MODE",
        one_of(*get_args(Mode)),
        "pool",
        options={
            "pool": "OPTIONS['pool']",
            "persistent": "CONN_MAX_AGE",
            "pgbouncer": "DISABLE_SERVER_SIDE_CURSORS",
            "null": "CONN_MAX_AGE",
        },
    )
    size: int = setting(  # connections kept open
        "DB_POOL_SIZE",
        whole_number(1, MOST_CONNECTIONS),
        20,
        options={"pool": "pool.min_size"},
        refused={
            "0": "to SQLAlchemy it means no limit; set 1 or more, or DB_POOL_MODE=null for no pool"
        },
    )
    overflow: int = setting(  # connections beyond the size
        "DB_MAX_OVERFLOW",
        whole_number(0, MOST_CONNECTIONS),
        10,
        options={"pool": "pool.max_size, size + overflow"},
        refused={
            "-1": "without a limit (SQLAlchemy's meaning), one burst takes every connection of the"
            " server, also from other applications; set how many the server can spare"
        },
    )
    pre_ping: bool = setting(  # check a connection before it is handed out
        "DB_POOL_PRE_PING",
        true_or_false,
        True,
        options={"pool": "CONN_HEALTH_CHECKS", "persistent": "CONN_HEALTH_CHECKS"},
    )
    recycle: int = setting(  # maximum age of a connection; NEVER: no limit
        "DB_POOL_RECYCLE",
        _recycle,
        3600,
        options={"pool": "pool.max_lifetime", "persistent": "CONN_MAX_AGE"},
        unit="s",
        refused={"0": "no connection would be used twice; for that, set DB_POOL_MODE=null"},
    )
    timeout: float = setting(  # maximum wait for a connection
        "DB_POOL_TIMEOUT",
        seconds(DAY),
        30.0,
        options={"pool": "pool.timeout"},
        unit="s",
    )
    release: Release = setting(  # when a connection goes back to the pool
        "DB_POOL_RELEASE",
        one_of(*get_args(Release)),
        "request",
        options={"pool": KEY},
        shown="our pool",
    )
    reset: Reset = setting(  # which connections are cleaned before the next holder has them
        "DB_POOL_RESET",
        one_of(*get_args(Reset)),
        "dirty",
        options={"pool": KEY},
        shown="our pool",
    )
    leak_seconds: float | None = setting(
        "DB_POOL_LEAK_SECONDS",
        seconds(DAY),
        None,
        options={"pool": KEY},
        shown="if set",
        unit="s",
    )
    no_cursors: bool | None = setting(  # None: depends on the mode
        "DB_DISABLE_SERVER_SIDE_CURSORS",
        true_or_false,
        None,
        options=dict.fromkeys(get_args(Mode), "DISABLE_SERVER_SIDE_CURSORS"),
        shown="if set",
    )

    @classmethod
    def from_env(cls, prefix: str = "", environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings. Raises SettingsError, which names every invalid variable."""
        reader = Reader(environ, prefix)
        settings = cls.read(reader)
        reader.stop_if_wrong()
        return settings

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read the settings. The reader records mistakes; those settings get their defaults."""
        return cls(**{name: reader.read(variable) for name, variable in SETTINGS.items()})

    def pool_options(self) -> dict[str, Any]:
        """Return OPTIONS["pool"] of a DATABASES entry: parameters of psycopg_pool."""
        return {name: getattr(self, field) for field, name in POOL_PARAMETERS.items()} | {
            "max_size": self.size + self.overflow,
            "max_lifetime": float("inf") if self.recycle == NEVER else float(self.recycle),
        }

    def own_options(self) -> OwnSettings:
        """Return the settings for which Django has no key, by field."""
        names = OwnSettings.__annotations__
        return cast(OwnSettings, {name: getattr(self, name) for name in names})

    def conn_max_age(self) -> int | None:
        """Return CONN_MAX_AGE of a DATABASES entry; it is 0 except in `persistent` mode."""
        if self.mode != "persistent":
            return 0
        return None if self.recycle == NEVER else self.recycle


SETTINGS: dict[str, Variable[Any]] = {
    each.name: each.metadata["variable"] for each in fields(PoolSettings)
}
# psycopg_pool's parameters by field; `facts.databases.pool_values` converts them back.
POOL_PARAMETERS = {
    name: found[1]
    for name, variable in SETTINGS.items()
    if (found := re.match(r"pool\.(\w+)", variable.options.get("pool", "")))
}
_ALL: tuple[Variable[Any], ...] = (
    DATABASE_URL,
    *PARTS.values(),
    DB_PASSWORD_PROVIDER,
    *SETTINGS.values(),
    DB_POOL_PROCESSES,
)
VARIABLES = {variable.name: variable for variable in _ALL}
NAMES = (*VARIABLES, *(f"{variable.name}_FILE" for variable in _ALL if variable.secret))


def database_from_env(
    prefix: str = "",
    *,
    default: str | None = None,
    base_dir: str | os.PathLike[str] = "",
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return one entry of DATABASES.

    prefix: the prefix of the variable names, such as "REPLICA_". A pool setting that is not set
        with the prefix falls back to the variable without it; the address does not.
    default: the URL to use if no address is set; without it, a missing address is an error.
    base_dir: the directory that `embedded:///DIR` is relative to; the default is the current one.
        The embedded server is started if it is not running.
    environ: the variables to read instead of os.environ.

    The entry is plain Django. Its key ABS_ORM_APP, which Django ignores, tells where each setting
    comes from; `docs/settings.md` lists its keys.

    Raises SettingsError (an ImproperlyConfigured), which names every invalid variable.
    """
    reader = Reader(environ, prefix)
    settings = PoolSettings.read(reader)
    reader.read(DB_POOL_PROCESSES)
    given = read_address(reader, default)
    reader.stop_if_wrong()
    address = given
    if given.embedded:
        address = running(given, Path(base_dir), reader.variables[DATABASE_URL.name])
    options: dict[str, Any] = with_default_options(address.options, reader.environ)
    if settings.mode == "pool":
        options["pool"] = settings.pool_options()
    # The engine adds the process to the default application_name. PgBouncer would set that name on
    # the server each time that a server connection passes from one process to another.
    named = settings.mode == "pgbouncer" or "application_name" in address.options
    return {
        "ENGINE": address.engine,
        "NAME": address.name,
        "USER": address.user,
        "PASSWORD": address.password,
        "HOST": address.host,
        "PORT": address.port,
        "CONN_MAX_AGE": settings.conn_max_age(),
        "CONN_HEALTH_CHECKS": settings.pre_ping,
        "DISABLE_SERVER_SIDE_CURSORS": (
            settings.mode == "pgbouncer" if settings.no_cursors is None else settings.no_cursors
        ),
        "OPTIONS": options,
        KEY: AppOptions(
            mode=settings.mode,
            prefix=prefix,
            sources=reader.sources,
            variables=reader.variables,
            **settings.own_options(),
            project=None if named else options.get("application_name"),
            embedded=given.embedded,
            url_file=reader.secret_file("DATABASE_URL"),
            password_file=reader.secret_file("DB_PASSWORD"),
            password_provider=given.password_provider or None,
        ),
    }


def refused(extra: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each setting in the key ABS_ORM_APP whose value is invalid, and why."""
    for name, value in extra.items():
        known = name in SETTINGS and name in AppOptions.__annotations__
        if known and (reason := SETTINGS[name].why_not(value)):
            yield name, f"{value!r}, which {reason}"


def pool_processes(environ: Mapping[str, str] | None = None) -> int:
    """Return the number of processes with these pools: DB_POOL_PROCESSES, WEB_CONCURRENCY or 1.

    Raises SettingsError for an invalid DB_POOL_PROCESSES; an invalid WEB_CONCURRENCY is ignored.
    """
    reader = Reader(environ)
    processes = reader.read(DB_POOL_PROCESSES)
    reader.stop_if_wrong()
    if processes is not None:
        return processes
    try:
        return whole_number(1, MOST_CONNECTIONS)(reader.environ.get("WEB_CONCURRENCY", ""))
    except ValueError:
        return 1


def unknown_variables(
    environ: Mapping[str, str] | None = None, prefixes: Iterable[str] = ("",)
) -> dict[str, str | None]:
    """Return variables that look like ours but are not read, with the name meant, or None."""
    names = os.environ if environ is None else environ
    found: dict[str, str | None] = {}
    for prefix in prefixes:
        read = [name for name in NAMES if not prefix or _is_prefixed(name)]
        for name, meant in unread_variables(names, prefix, NAMES, read):
            found[name] = prefix + meant if meant and _is_prefixed(meant) else meant
    return found


def _is_prefixed(name: str) -> bool:
    return name not in VARIABLES or VARIABLES[name].prefixed
