"""Reads the DB_* variables into PoolSettings and into one entry of DATABASES.

    DATABASES = {"default": database_from_env()}

`docs/settings.md` lists the variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from abs_orm_app.config.address import (
    DATABASE_URL,
    DB_PASSWORD_PROVIDER,
    PARTS,
    read_address,
    running,
    with_default_options,
)
from abs_orm_app.config.entry import KEY, AppOptions, Mode, Release, Reset
from abs_orm_app.config.unread import unread_variables
from abs_orm_app.config.variables import (
    Reader,
    SettingsError,
    Variable,
    one_of,
    read_env_file,
    seconds,
    true_or_false,
    whole_number,
)

__all__ = [
    "PLACEHOLDER_PASSWORDS",
    "VARIABLES",
    "Mode",
    "PoolSettings",
    "SettingsError",
    "database_from_env",
    "pool_processes",
    "read_env_file",
    "unknown_variables",
]

MOST_CONNECTIONS = 262143  # PostgreSQL's own upper bound of max_connections
DAY = 86400.0  # seconds
PLACEHOLDER_PASSWORDS = frozenset({"change-me"})  # in .env.example


def _mode(text: str) -> Mode:
    return cast(Mode, one_of(*get_args(Mode))(text))


def _release(text: str) -> Release:
    return cast(Release, one_of(*get_args(Release))(text))


def _reset(text: str) -> Reset:
    return cast(Reset, one_of(*get_args(Reset))(text))


def _recycle(text: str) -> int:
    if text.strip() == "-1":
        return -1
    try:
        return whole_number(1, 2**31 - 1)(text)
    except ValueError:
        raise ValueError("is not a whole number of seconds, 1 or more, or -1 for never") from None


DB_POOL_MODE = Variable[Mode](name="DB_POOL_MODE", parse=_mode, default="pool")
DB_POOL_SIZE = Variable(
    name="DB_POOL_SIZE",
    parse=whole_number(1, MOST_CONNECTIONS),
    default=20,
    refused={
        "0": "to SQLAlchemy it means no limit; set 1 or more, or DB_POOL_MODE=null for no pool"
    },
)
DB_MAX_OVERFLOW = Variable(
    name="DB_MAX_OVERFLOW",
    parse=whole_number(0, MOST_CONNECTIONS),
    default=10,
    refused={
        "-1": "without a limit (SQLAlchemy's meaning), one burst takes every connection of the"
        " server, also from other applications; set how many the server can spare"
    },
)
DB_POOL_PRE_PING = Variable(name="DB_POOL_PRE_PING", parse=true_or_false, default=True)
DB_POOL_RECYCLE = Variable(
    name="DB_POOL_RECYCLE",
    parse=_recycle,
    default=3600,
    refused={"0": "no connection would be used twice; for that, set DB_POOL_MODE=null"},
)
DB_POOL_TIMEOUT = Variable(name="DB_POOL_TIMEOUT", parse=seconds(DAY), default=30.0)
DB_POOL_RELEASE = Variable[Release](name="DB_POOL_RELEASE", parse=_release, default="request")
DB_POOL_RESET = Variable[Reset](name="DB_POOL_RESET", parse=_reset, default="dirty")
DB_POOL_LEAK_SECONDS = Variable[float | None](
    name="DB_POOL_LEAK_SECONDS", parse=seconds(DAY), default=None
)
DB_POOL_PROCESSES = Variable[int | None](
    name="DB_POOL_PROCESSES",
    parse=whole_number(1, MOST_CONNECTIONS),
    default=None,
    prefixed=False,
)
DB_DISABLE_SERVER_SIDE_CURSORS = Variable[bool | None](
    name="DB_DISABLE_SERVER_SIDE_CURSORS", parse=true_or_false, default=None
)

_ALL: tuple[Variable[Any], ...] = (
    DATABASE_URL,
    *PARTS.values(),
    DB_PASSWORD_PROVIDER,
    DB_POOL_MODE,
    DB_POOL_SIZE,
    DB_MAX_OVERFLOW,
    DB_POOL_PRE_PING,
    DB_POOL_RECYCLE,
    DB_POOL_TIMEOUT,
    DB_POOL_RELEASE,
    DB_POOL_RESET,
    DB_POOL_LEAK_SECONDS,
    DB_POOL_PROCESSES,
    DB_DISABLE_SERVER_SIDE_CURSORS,
)
VARIABLES = {variable.name: variable for variable in _ALL}
NAMES = (*VARIABLES, *(f"{variable.name}_FILE" for variable in _ALL if variable.secret))


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """The five settings and the mode, with the defaults of the variables."""

    mode: Mode = DB_POOL_MODE.default
    size: int = DB_POOL_SIZE.default  # connections kept open, 1 or more
    overflow: int = DB_MAX_OVERFLOW.default  # connections beyond the size, 0 or more
    pre_ping: bool = DB_POOL_PRE_PING.default  # check a connection before it is handed out
    recycle: int = DB_POOL_RECYCLE.default  # maximum age of a connection in seconds; -1: none
    timeout: float = DB_POOL_TIMEOUT.default  # maximum wait for a connection in seconds

    @classmethod
    def from_env(cls, prefix: str = "", environ: Mapping[str, str] | None = None) -> PoolSettings:
        """Read the settings. Raises SettingsError, which names every variable that is wrong."""
        reader = Reader(environ, prefix)
        settings = cls.read(reader)
        reader.stop_if_wrong()
        return settings

    @classmethod
    def read(cls, reader: Reader) -> PoolSettings:
        """Read the settings. The reader notes each mistake; the setting then has its default."""
        return cls(
            mode=reader.read(DB_POOL_MODE),
            size=reader.read(DB_POOL_SIZE),
            overflow=reader.read(DB_MAX_OVERFLOW),
            pre_ping=reader.read(DB_POOL_PRE_PING),
            recycle=reader.read(DB_POOL_RECYCLE),
            timeout=reader.read(DB_POOL_TIMEOUT),
        )

    def pool_options(self) -> dict[str, Any]:
        """Return OPTIONS["pool"] of a DATABASES entry: parameters of psycopg_pool."""
        return {
            "min_size": self.size,
            "max_size": self.size + self.overflow,
            "max_lifetime": float("inf") if self.recycle == -1 else float(self.recycle),
            "timeout": self.timeout,
        }

    def conn_max_age(self) -> int | None:
        """Return CONN_MAX_AGE of a DATABASES entry; only `persistent` mode lets Django use it."""
        if self.mode != "persistent":
            return 0
        return None if self.recycle == -1 else self.recycle


def database_from_env(
    prefix: str = "",
    *,
    default: str | None = None,
    base_dir: str | os.PathLike[str] = "",
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return one entry of DATABASES.

    prefix: what the names of the variables begin with ("REPLICA_"). A pool setting that is not set
        with the prefix is taken from the variable without it; the address is not.
    default: the URL to use if no address is set; without it, that is an error.
    base_dir: the directory that `embedded:///DIR` is relative to, by default the current one. The
        embedded server is started if it does not run.
    environ: variables to read in place of os.environ.

    The entry is plain Django. Its key ABS_ORM_APP, which Django ignores, says where each setting
    comes from; `docs/settings.md` lists its keys.

    Raises SettingsError (an ImproperlyConfigured), which names every variable that is wrong.
    """
    reader = Reader(environ, prefix)
    settings = PoolSettings.read(reader)
    release, reset = reader.read(DB_POOL_RELEASE), reader.read(DB_POOL_RESET)
    leak_seconds = reader.read(DB_POOL_LEAK_SECONDS)
    no_cursors = reader.read(DB_DISABLE_SERVER_SIDE_CURSORS)
    reader.read(DB_POOL_PROCESSES)
    given = read_address(reader, default)
    reader.stop_if_wrong()
    address = given
    if given.embedded:
        address = running(given, Path(base_dir), reader.variables[DATABASE_URL.name])
    options: dict[str, Any] = with_default_options(address.options, reader.environ)
    if settings.mode == "pool":
        options["pool"] = settings.pool_options()
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
            settings.mode == "pgbouncer" if no_cursors is None else no_cursors
        ),
        "OPTIONS": options,
        KEY: AppOptions(
            mode=settings.mode,
            prefix=prefix,
            sources=reader.sources,
            variables=reader.variables,
            release=release,
            reset=reset,
            leak_seconds=leak_seconds,
            project=_project(address.options, options, settings.mode),
            embedded=given.embedded,
            url_file=reader.secret_file("DATABASE_URL"),
            password_file=reader.secret_file("DB_PASSWORD"),
            password_provider=given.password_provider or None,
        ),
    }


def _project(given: Mapping[str, str], options: Mapping[str, Any], mode: Mode) -> str | None:
    """Return the application_name if it is the default; the engine adds the process to it.

    None in `pgbouncer` mode: PgBouncer would send the server a new name each time that a server
    connection passes from one process to another.
    """
    if mode == "pgbouncer" or "application_name" in given:
        return None
    return options.get("application_name")


def pool_processes(environ: Mapping[str, str] | None = None) -> int:
    """Return the number of processes with these pools: DB_POOL_PROCESSES, WEB_CONCURRENCY or 1.

    WEB_CONCURRENCY belongs to the web server, so a value that is not a number is ignored. Raises
    SettingsError for a wrong DB_POOL_PROCESSES.
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
    """Return the variables that look like ours but are not read, each with the name meant, or None.

    Only those that begin with one of the prefixes.
    """
    names = os.environ if environ is None else environ
    found: dict[str, str | None] = {}
    for prefix in prefixes:
        read = [name for name in NAMES if not prefix or _is_prefixed(name)]
        for name, meant in unread_variables(names, prefix, NAMES, read):
            found[name] = prefix + meant if meant and _is_prefixed(meant) else meant
    return found


def _is_prefixed(name: str) -> bool:
    return name not in VARIABLES or VARIABLES[name].prefixed
