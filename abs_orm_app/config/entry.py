"""What this app reads from a DATABASES entry: its key ABS_ORM_APP, and OPTIONS."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, cast

KEY = "ABS_ORM_APP"

Mode = Literal["pool", "persistent", "pgbouncer", "null"]
Release = Literal["request", "transaction"]
Reset = Literal["dirty", "always", "never"]


class OwnSettings(TypedDict, total=False):
    """The fields of PoolSettings that Django has no key for."""

    leak_seconds: float | None
    release: Release  # when a connection goes back to the pool
    reset: Reset  # which connections are cleaned before the next holder has them


class AppOptions(OwnSettings, total=False):
    """`database_from_env` sets all keys; a handwritten entry may have any of them."""

    mode: Mode
    prefix: str  # of the variables, such as "REPLICA_"
    sources: Mapping[str, str]  # by name without prefix: "environment", ".env" or "default"
    variables: Mapping[str, str]  # by name without prefix: the variable that was read
    project: str | None  # the default application_name, to which the engine adds the process
    embedded: str  # the directory of the embedded server; "" for any other
    url_file: str | None  # an absolute path
    password_file: str | None  # an absolute path, read again for each connection
    password_provider: str | None  # the dotted path of a function that returns the password


def app_options(entry: Mapping[str, Any]) -> AppOptions:
    """Return ABS_ORM_APP of an entry of DATABASES; {} if it is missing or not a dict."""
    given = entry.get(KEY)
    return cast(AppOptions, given if isinstance(given, Mapping) else {})


def options_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return OPTIONS of an entry of DATABASES; {} if it is not a dict, which E005 reports."""
    given = entry.get("OPTIONS")
    return given if isinstance(given, Mapping) else {}
