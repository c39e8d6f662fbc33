"""Rules on DATABASES and the environment: settings that cannot work with any server."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from abs_orm_app.checks.finding import Finding, new_finding, of_alias
from abs_orm_app.config.entry import KEY, AppOptions
from abs_orm_app.config.texts import did_you_mean, explain
from abs_orm_app.environment import refused
from abs_orm_app.facts.databases import Configured

LEAST_VERSION = (3, 2)  # of psycopg and of psycopg_pool


@dataclass(frozen=True, kw_only=True)
class Installed:
    """The installed versions of the packages that a pool needs."""

    psycopg: str | None  # version; None: not installed
    psycopg_pool: str | None
    pool_parameters: tuple[str, ...]  # all parameters of psycopg_pool's ConnectionPool
    check_is_free: bool  # Django leaves the parameter `check` to the project (6.1 and newer)


@of_alias
def static_findings(database: Configured, installed: Installed) -> Iterator[Finding]:
    """Check an alias that sets OPTIONS['pool']."""
    yield from engine_and_driver(database, installed)
    yield from unusable_parameters(database, installed)
    yield from impossible_values(database)


@of_alias
def entry_findings(database: Configured) -> Iterator[Finding]:
    """Check the keys of an entry for PostgreSQL, with or without a pool."""
    if database.vendor != "postgresql":
        return
    yield from unknown_keys(database)
    yield from wrong_types(database)
    yield from mistakes_in_our_key(database)
    transactions = database.value("release") == "transaction"
    if database.hardened and database.atomic_requests and transactions:
        yield new_finding(
            "I003",
            "ATOMIC_REQUESTS makes each request one transaction, which keeps its connection: with"
            " it, DB_POOL_RELEASE=transaction gains nothing for views.",
            "Use atomic() where it is needed, or exempt the views that wait for other services"
            " with @transaction.non_atomic_requests.",
        )


_FLAG = ("True or False", int)  # not the string "false", which is true
_KEYS: dict[str, tuple[str, Any]] = {
    "CONN_MAX_AGE": ("a number of seconds, or None", int | float | None),
    "OPTIONS": ("a dict", Mapping),
    **dict.fromkeys(("ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_HEALTH_CHECKS"), _FLAG),
    "DISABLE_SERVER_SIDE_CURSORS": _FLAG,
}


def unknown_keys(database: Configured) -> Iterator[Finding]:
    """Find keys that resemble one of Django's or ours; others may be for another package."""
    known = (*_KEYS, KEY, "ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "TIME_ZONE", "TEST")
    for name in database.entry:
        if name not in known and (meant := get_close_matches(name, known, n=1, cutoff=0.85)):
            yield new_finding(
                "W001",
                f"Nothing reads the key {name!r}; did you mean {meant[0]!r}?",
                "Rename or remove it.",
            )


def wrong_types(database: Configured) -> Iterator[Finding]:
    """Find values that make Django fail at the first query, or that it takes for True."""
    for name, (accepted, kind) in _KEYS.items():
        if name in database.entry and not isinstance(database.entry[name], kind):
            yield _must_be(name, _type(database.entry[name]), accepted, "Django's default")


def engine_and_driver(database: Configured, installed: Installed) -> Iterator[Finding]:
    if not (database.can_pool or database.error):
        yield new_finding(
            "E006",
            f"OPTIONS['pool'] is set, but the engine {database.engine} has no pool.",
            "Remove OPTIONS['pool'], or use an engine with a pool:",
            fix='"ENGINE": "abs_orm_app.backends.postgresql"',
        )
    age: object = database.conn_max_age
    if database.can_pool and age != 0 and not isinstance(age, str):  # E005 reports a string
        yield new_finding(
            "E001",
            f"CONN_MAX_AGE={age} and OPTIONS['pool'] are both set, which Django refuses.",
            "Remove CONN_MAX_AGE; the pool's max_lifetime limits the age of a connection.",
        )
    needs_driver = database.vendor == "postgresql" or database.error
    for number, package, version in (
        ("E002", "psycopg", installed.psycopg),
        ("E003", "psycopg_pool", installed.psycopg_pool),
    ):
        if needs_driver and (version is None or _as_tuple(version) < LEAST_VERSION):
            wanted = ".".join(map(str, LEAST_VERSION))
            found = f"version {version} is installed" if version else "it is not installed"
            yield new_finding(
                number,
                f"A pool needs {package} {wanted} or newer; {found}.",
                "Install it:",
                fix="pip install --upgrade 'psycopg[binary,pool]'",
            )


def _as_tuple(version: str) -> tuple[int, ...]:
    """Return (3, 2) for "3.2.1" and for "3.2.dev1"."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _must_be(where: str, given: object, accepted: str, default: str) -> Finding:
    message = f"{where} is {given}; it must be {accepted}."
    return new_finding("E005", message, f"Correct the value, or remove it to use {default}.")


def _type(value: object) -> str:
    """Describe a value, which may be a secret, by its type."""
    return f"of type {type(value).__name__}"


def _parameters(database: Configured) -> Mapping[str, object]:
    """Return the parameters for psycopg_pool; another vendor's pool has others."""
    return database.pool if database.pools and isinstance(database.pool, dict) else {}


def unusable_parameters(database: Configured, installed: Installed) -> Iterator[Finding]:
    if database.pools and database.pool is not True and not isinstance(database.pool, dict):
        yield new_finding(
            "E005",
            f"OPTIONS['pool'] is {_type(database.pool)}; it must be a dict or True.",
            "Set it to a dict of psycopg_pool's parameters:",
            fix='"OPTIONS": {"pool": {"min_size": 4, "max_size": 10}}',
        )
    known = installed.pool_parameters
    for name in map(str, _parameters(database)):
        if known and name not in known:
            yield new_finding(
                "E004",
                f"psycopg_pool has no parameter {name!r}{did_you_mean(name, known)}.",
                "Correct or remove it in OPTIONS['pool'].",
            )
    taken = {
        "open": "the pool opens at the first query",
        "kwargs": "the other OPTIONS give the connection parameters",
        "configure": "the engine configures each connection",
    }
    if database.hardened:
        taken["name"] = "the pool has the name of its alias"
    if not (database.hardened or installed.check_is_free):
        taken["check"] = "CONN_HEALTH_CHECKS turns the check on and off"
    for name in taken.keys() & _parameters(database).keys():
        yield new_finding(
            "E007",
            f"OPTIONS['pool'] contains {name!r}, which the engine sets itself: {taken[name]}.",
            f"Remove {name!r} from OPTIONS['pool'].",
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
    "max_size": ("a whole number, 1 or more", _whole(0)),  # 0 is E005 below
    "max_waiting": ("a whole number, 0 or more", _whole(0)),
    "num_workers": ("a whole number, 1 or more", _whole(1)),
    # Threads wait this long; infinity would raise an OverflowError.
    "timeout": ("a number of seconds above 0, up to a day", _seconds(86400)),
    "max_idle": ("a number of seconds above 0, up to a year", _seconds(365 * 86400)),
    "max_lifetime": ("a number of seconds above 0", _seconds(math.inf)),
    "reconnect_timeout": ("a number of seconds, 0 or more", _seconds(math.inf, zero=True)),
    **dict.fromkeys(
        ("check", "reset", "reconnect_failed"),
        ("a function, or None", lambda value: value is None or callable(value)),
    ),
}


def impossible_values(database: Configured) -> Iterator[Finding]:
    for name, value in _parameters(database).items():
        accepted, is_accepted = _ACCEPTED.get(name, ("", lambda _: True))
        if not is_accepted(value) and not (name == "max_size" and value is None):
            given = value if isinstance(value, int | float) else _type(value)
            yield _must_be(f"OPTIONS['pool']['{name}']", given, accepted, "psycopg_pool's default")
    size, overflow = database.value("size"), database.value("overflow")
    if not (database.pools and isinstance(size, int) and isinstance(overflow, int)):
        return
    most = size + overflow
    if 0 <= most < max(size, 1):
        yield new_finding(
            "E005",
            f"The pool's min_size is {size}, but its max_size is {most}.",
            "max_size is the pool size plus the overflow: set it to 1 or more, and at least to"
            " min_size:",
            fix=f'"OPTIONS": {{"pool": {{"min_size": {size}, "max_size": {max(size, 1)}}}}}',
        )


def mistakes_in_our_key(database: Configured) -> Iterator[Finding]:
    """Find mistakes in a handwritten ABS_ORM_APP, which Django ignores, typos and all."""
    given = database.entry.get(KEY) or {}
    if not isinstance(given, Mapping):
        yield new_finding(
            "E005",
            f"ABS_ORM_APP is {_type(given)}; it must be a dict.",
            "Correct it, or remove it:",
            fix='"ABS_ORM_APP": {"release": "request"}',
        )
        return
    known = tuple(AppOptions.__annotations__)
    for name in given:
        if name not in known:
            yield new_finding(
                "E004",
                f"ABS_ORM_APP has no key {name!r}{did_you_mean(str(name), known)}.",
                "Correct or remove it.",
            )
    for name, why in refused(given):
        yield new_finding(
            "E005",
            f"ABS_ORM_APP['{name}'] is {why}.",
            "Correct the value, or remove it to use the default.",
        )


def unknown_variables(names: Mapping[str, str | None]) -> list[Finding]:
    """Report each unknown variable that looks like one of ours, with the name that was meant."""
    return [
        new_finding(
            "W001",
            f"Nothing reads the environment variable {name}"
            + (f"; did you mean {meant}?" if meant else "."),
            f"Rename or unset it. `{explain('settings')}` lists the variables.",
        )
        for name, meant in names.items()
    ]


def wrong_processes(reason: str) -> Finding:
    remedy = "Set it to the number of processes that have these pools, or unset it."
    return new_finding("E008", reason, remedy)
