"""The rules: facts in, findings out. No I/O. Each id has its entry in docs/checks.md."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.core.checks import ERROR, INFO, WARNING

from abs_orm_app.config.variables import did_you_mean
from abs_orm_app.environment import PLACEHOLDER_PASSWORDS
from abs_orm_app.facts.databases import NEVER, Configured

if TYPE_CHECKING:  # every command runs the checks, and most need no server
    from abs_orm_app.capacity.budget import Budget
    from abs_orm_app.facts.failure import Failure

GUIDE = "docs/checks.md"
LEAST_PSYCOPG = (3, 2)
LEAST_PSYCOPG_POOL = (3, 2)
LONGEST_RECYCLE = 3600  # seconds


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that an operator should know, and what to do about it."""

    id: str  # "abs_orm_app.E001"
    level: int  # of django.core.checks
    message: str
    hint: str
    alias: str | None = None  # None: it is about several aliases, or about none

    @property
    def guide(self) -> str:
        """Where the docs say more."""
        return f"{GUIDE}#{self.id.rpartition('.')[2]}"


def new_finding(number: str, message: str, hint: str, alias: str | None = None) -> Finding:
    """Make a finding; the number's letter gives the level."""
    level = {"E": ERROR, "W": WARNING, "I": INFO}[number[0]]
    return Finding(id=f"abs_orm_app.{number}", level=level, message=message, hint=hint, alias=alias)


# From the settings alone


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What a pool is built on."""

    psycopg: str | None  # version; None: not installed
    psycopg_pool: str | None
    pool_parameters: tuple[str, ...]  # all that psycopg_pool's ConnectionPool takes
    check_is_free: bool  # Django leaves the parameter `check` to the project (6.1 and newer)


def static_findings(databases: Iterable[Configured], installed: Installed) -> list[Finding]:
    """What cannot work, whatever the server says."""
    rules = (
        engine_without_pool,
        max_age_with_pool,
        driver_missing_or_old,
        pool_is_no_dict,
        unknown_parameters,
        parameters_set_by_engine,
        impossible_values,
        size_above_maximum,
    )
    return [
        finding
        for database in databases
        if database.pool
        for rule in rules
        for finding in rule(database, installed)
    ]


def engine_without_pool(database: Configured, _: Installed) -> Iterator[Finding]:
    if not (database.can_pool or database.error):
        yield new_finding(
            "E006",
            f"OPTIONS['pool'] is set, but the engine {database.engine} has no pool.",
            "Remove it, or use an engine that pools, such as abs_orm_app.backends.postgresql.",
            database.alias,
        )


def max_age_with_pool(database: Configured, _: Installed) -> Iterator[Finding]:
    if database.can_pool and database.conn_max_age != 0:
        yield new_finding(
            "E001",
            f"CONN_MAX_AGE={database.conn_max_age} and a pool are both set; Django refuses that.",
            "Remove CONN_MAX_AGE; how old a connection may get is the pool's max_lifetime.",
            database.alias,
        )


def driver_missing_or_old(database: Configured, installed: Installed) -> Iterator[Finding]:
    if not (database.vendor == "postgresql" or database.error):
        return
    needed = (
        ("E002", "psycopg", installed.psycopg, LEAST_PSYCOPG),
        ("E003", "psycopg_pool", installed.psycopg_pool, LEAST_PSYCOPG_POOL),
    )
    for number, package, version, least in needed:
        if version is None or _as_tuple(version) < least:
            have = f"has {version}" if version else "has none"
            wanted = ".".join(map(str, least))
            yield new_finding(
                number,
                f"A pool needs {package} {wanted} or newer; this environment {have}.",
                "pip install --upgrade 'psycopg[binary,pool]'",
                database.alias,
            )


def _as_tuple(version: str) -> tuple[int, ...]:
    """Give (3, 2) for "3.2.1" and for "3.2.dev1"."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def pool_is_no_dict(database: Configured, _: Installed) -> Iterator[Finding]:
    if database.pools and database.pool is not True and not isinstance(database.pool, dict):
        yield new_finding(
            "E005",
            f"OPTIONS['pool'] is a {type(database.pool).__name__}; it must be a dict or True.",
            "Give psycopg_pool's parameters, such as {'min_size': 4, 'max_size': 20}.",
            database.alias,
        )


def _parameters(database: Configured) -> Mapping[str, object]:
    """What the project gives to psycopg_pool; another vendor's pool has parameters of its own."""
    return database.pool if database.pools and isinstance(database.pool, dict) else {}


def unknown_parameters(database: Configured, installed: Installed) -> Iterator[Finding]:
    known = installed.pool_parameters
    for name in map(str, _parameters(database)):
        if known and name not in known:
            yield new_finding(
                "E004",
                f"psycopg_pool has no parameter {name!r}{did_you_mean(name, known)}.",
                "Correct or remove it in OPTIONS['pool'].",
                database.alias,
            )


def parameters_set_by_engine(database: Configured, installed: Installed) -> Iterator[Finding]:
    taken = {
        "open": "the pool opens at the first query",
        "kwargs": "what connections need comes from the other OPTIONS",
        "configure": "the engine sets each connection up",
    }
    if database.hardened:
        taken["name"] = "the pool is named like its alias"
    if database.hardened or not installed.check_is_free:
        taken["check"] = "set CONN_HEALTH_CHECKS to check connections"
    for name in taken.keys() & _parameters(database).keys():
        yield new_finding(
            "E007",
            f"OPTIONS['pool'] gives {name!r}, which the engine sets itself: {taken[name]}.",
            "Remove it from OPTIONS['pool'].",
            database.alias,
        )


def _whole(least: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and value >= least


def _seconds(most: float, *, zero: bool = False) -> Callable[[object], bool]:
    def is_accepted(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return 0 < value <= most or (zero and value == 0)

    return is_accepted


_ACCEPTED = {
    "min_size": ("a whole number, 0 or more", _whole(0)),
    "max_size": ("a whole number, 1 or more", _whole(0)),  # 0: see size_above_maximum
    "max_waiting": ("a whole number, 0 or more", _whole(0)),
    "num_workers": ("a whole number, 1 or more", _whole(1)),
    # Threads wait for so long, which infinity would end with an OverflowError.
    "timeout": ("a number of seconds above 0, up to a day", _seconds(86400)),
    "max_idle": ("a number of seconds above 0, up to a year", _seconds(365 * 86400)),
    "max_lifetime": ("a number of seconds above 0", _seconds(math.inf)),
    "reconnect_timeout": ("a number of seconds, 0 or more", _seconds(math.inf, zero=True)),
}


def impossible_values(database: Configured, _: Installed) -> Iterator[Finding]:
    for name, value in _parameters(database).items():
        accepted, is_accepted = _ACCEPTED.get(name, ("", lambda _: True))
        if not is_accepted(value) and not (name == "max_size" and value is None):
            shown = value if isinstance(value, int | float) else f"a {type(value).__name__}"
            yield new_finding(
                "E005",
                f"OPTIONS['pool']['{name}'] is {shown}; it must be {accepted}.",
                "Correct it; without it, psycopg_pool's default counts.",
                database.alias,
            )


def size_above_maximum(database: Configured, _: Installed) -> Iterator[Finding]:
    size, overflow = database.value("size"), database.value("overflow")
    if not (database.pools and isinstance(size, int) and isinstance(overflow, int)):
        return
    most = size + overflow
    if 0 <= most < max(size, 1):
        yield new_finding(
            "E005",
            f"The pool's min_size is {size}, and its max_size is {most}.",
            "max_size is pool size and overflow together: make it min_size or more, at least 1.",
            database.alias,
        )


def unknown_variables(names: Mapping[str, str | None]) -> list[Finding]:
    """One for each variable that looks like a setting of the pool, with the name that was meant."""
    return [
        new_finding(
            "W001",
            f"Nothing reads the environment variable {name}"
            + (f"; did you mean {meant}?" if meant else "."),
            "Rename or unset it. docs/settings.md lists the variables.",
        )
        for name, meant in names.items()
    ]


def wrong_processes(reason: str) -> Finding:
    """The number of processes cannot be read from the environment."""
    return new_finding(
        "E008", reason, "Set it to how many processes have these pools, or unset it."
    )


# For production


def deploy_findings(databases: Iterable[Configured]) -> list[Finding]:
    """What works, and should not be in production."""
    rules = (
        pooling_off,
        pre_ping_off,
        recycle_off_or_long,
        embedded_database,
        tls_not_required,
        placeholder_password,
    )
    return [
        finding
        for database in databases
        if database.vendor == "postgresql"
        for rule in rules
        for finding in rule(database)
    ]


def pooling_off(database: Configured) -> Iterator[Finding]:
    if database.mode == "null":
        yield new_finding(
            "W011",
            "Every request opens a connection of its own.",
            "Set DB_POOL_MODE=pool; or pgbouncer, if a PgBouncer does the pooling.",
            database.alias,
        )


def pre_ping_off(database: Configured) -> Iterator[Finding]:
    if database.mode in ("pool", "persistent") and not database.health_checks:
        yield new_finding(
            "W012",
            "Pre-ping is off: after a restart of the server, requests get dead connections.",
            "Set DB_POOL_PRE_PING=true (CONN_HEALTH_CHECKS).",
            database.alias,
        )


def recycle_off_or_long(database: Configured) -> Iterator[Finding]:
    recycle = database.value("recycle")
    if not isinstance(recycle, int | float) or NEVER < recycle <= LONGEST_RECYCLE:
        return
    what = "off" if recycle == NEVER else f"{recycle:g} seconds"
    yield new_finding(
        "W013",
        f"Recycle is {what}: connections grow old, and so does the memory of their sessions; "
        "after a failover they stay where they are.",
        f"Set DB_POOL_RECYCLE={LONGEST_RECYCLE} or less.",
        database.alias,
    )


def embedded_database(database: Configured) -> Iterator[Finding]:
    if database.embedded:
        yield new_finding(
            "W014",
            "The database is the embedded one, which is for development and tests.",
            "Set DATABASE_URL to a server of your own.",
            database.alias,
        )


def tls_not_required(database: Configured) -> Iterator[Finding]:
    demanding = database.sslmode in ("require", "verify-ca", "verify-full")
    remote = [host for host in database.host.split(",") if not is_local(host)]
    if remote and not demanding:
        yield new_finding(
            "W015",
            f"Connections to {', '.join(remote)} may go without TLS: "
            f"sslmode is {database.sslmode or 'prefer'}.",
            "Add ?sslmode=verify-full (or at least require) to DATABASE_URL.",
            database.alias,
        )


def is_local(host: str) -> bool:
    if not host or host == "localhost" or host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def placeholder_password(database: Configured) -> Iterator[Finding]:
    if database.password in PLACEHOLDER_PASSWORDS:
        yield new_finding(
            "W016",
            "The password is the placeholder of .env.example.",
            "Change the role's password on the server, and set DB_PASSWORD or DATABASE_URL.",
            database.alias,
        )


# From what the server says


def budget_findings(budgets: Iterable[Budget]) -> list[Finding]:
    """One for each limit that all the processes together can pass."""
    return [
        pool_size_too_large(budget) if budget.at_rest > budget.limit.connections
        else overflow_too_large(budget)
        for budget in budgets
        if budget.at_peak > budget.limit.connections
    ]  # fmt: skip


def pool_size_too_large(budget: Budget) -> Finding:
    return new_finding(
        "E021",
        f"{budget.arithmetic}; {budget.limit.why}. Even without overflow it is {budget.at_rest}.",
        _how_to_fit(budget),
        _only_alias(budget),
    )


def overflow_too_large(budget: Budget) -> Finding:
    return new_finding(
        "W021",
        f"{budget.arithmetic}; {budget.limit.why}. With all of the overflow in use, "
        "some processes will be refused.",
        _how_to_fit(budget),
        _only_alias(budget),
    )


def _how_to_fit(budget: Budget) -> str:
    fits, aliases = budget.per_process, [repr(demand.alias) for demand in budget.demands]
    of_all = f" of {' and '.join(aliases)} together" if len(aliases) > 1 else ""
    smaller = (
        f"Lower DB_POOL_SIZE + DB_MAX_OVERFLOW{of_all} to {fits} or less in each process, run"
        if fits >= len(aliases)
        else "Run"
    )
    return f"{smaller} fewer processes, raise the limit, or put PgBouncer in between."


def _only_alias(budget: Budget) -> str | None:
    return budget.demands[0].alias if len(budget.demands) == 1 else None


def server_not_asked(alias: str, failure: Failure) -> Finding:
    """The server did not answer: no error, because no check may fail for that."""
    return new_finding(
        "I001",
        f"The server could not be asked about its limits: {failure.cause}",
        failure.hint,
        alias,
    )
