"""Helpers to connect to an alias: parameters, a timeout, and the errors to catch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from zoneinfo import ZoneInfoNotFoundError

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DjangoError
from django.db import connections
from psycopg.errors import ConnectionTimeout

from abs_orm_app.config.entry import options_of
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.secrets import remember
from abs_orm_app.pool.causes import located, reached
from abs_orm_app.pool.hosts import Place, listed
from abs_orm_app.pool.liveness import GONE, SILENT

MARGIN = 5.0  # seconds for everything after connecting
# Raised for wrong settings, or if the server refuses the connection.
ERRORS = (
    *(psycopg.Error, DjangoError, ImproperlyConfigured, ImportError, OSError),
    *(TypeError, ValueError, ZoneInfoNotFoundError),
)
CONNECT_TIMEOUT = 10.0  # seconds, if the settings have none


def wrapper_of(configured: Configured) -> Any:
    """Return this thread's DatabaseWrapper; the attributes used here are PostgreSQL's."""
    return connections[configured.alias]


def parameters_of(wrapper: Any) -> dict[str, Any]:
    """Return the parameters of a new connection, with the password that is valid now."""
    parameters: dict[str, Any] = wrapper.get_connection_params()
    if password := parameters.get("password"):
        remember(wrapper.alias, str(password))
    return parameters


def return_unchanged(pool: Any, conn: Any) -> None:
    """Return a connection whose session is unchanged; our own `putconn` may clean it."""
    getattr(pool, "return_unchanged", pool.putconn)(conn)


def seconds_to_connect(configured: Configured) -> float:
    """Return how long connecting may take: connect_timeout applies to each host of a list."""
    options = options_of(wrapper_of(configured).settings_dict)
    hosts = max(str(given).count(",") + 1 for given in (configured.host, options.get("hostaddr")))
    rounds = 2 if options.get("target_session_attrs") == "prefer-standby" else 1
    return rounds * hosts * (configured.connect_timeout or CONNECT_TIMEOUT)


def locate_timeout(error: BaseException, configured: Configured) -> BaseException:
    """Add to a timeout whether anything accepts connections there; return other errors as is."""
    timeouts = (TimeoutError, ConnectionTimeout)
    if not isinstance(error, timeouts) and not isinstance(error.__cause__, timeouts):
        return error
    return located(error, _places_of(configured))


def is_silent(configured: Configured) -> bool:
    found, _ = reached([place.target for place in _places_of(configured)])
    return found in (SILENT, GONE)


def _places_of(configured: Configured) -> list[Place]:
    given = wrapper_of(configured).settings_dict
    return listed({"host": given["HOST"], "port": given["PORT"], **options_of(given)})


@contextmanager
def isolated_wrapper(alias: str, pool: Mapping[str, Any], **options: Any) -> Iterator[Any]:
    """Yield another DatabaseWrapper of the alias, which `django.db.connections` does not know.

    pool, options: parameters that replace the alias's own.

    Leaving the block closes its pool; the thread that opens its connection must close that.
    """
    own: Any = connections[alias]
    options = {**own.settings_dict["OPTIONS"], **options}
    if given := options.get("pool"):
        options["pool"] = {**({} if given is True else given), **pool}
    wrapper = type(own)({**own.settings_dict, "OPTIONS": options}, alias)
    # All wrappers share one dict of the class, which holds the project's pool.
    pools = wrapper._connection_pools = {}
    try:
        yield wrapper
    finally:
        for mine in pools.values():
            mine.close()
