"""What this app reads of a DATABASES entry: its key ABS_ORM_APP, and OPTIONS."""

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
    """`database_from_env` writes all the keys; an entry written by hand may have any of them."""

    mode: Mode
    prefix: str  # of the variables, such as "REPLICA_"
    sources: Mapping[str, str]  # by name without prefix: "environment", ".env" or "default"
    variables: Mapping[str, str]  # by name without prefix: the variable that was read
    project: str | None  # the default application_name, which the engine extends by the process
    embedded: str  # the directory of the embedded server; "" for any other
    url_file: str | None  # an absolute path
    password_file: str | None  # an absolute path, read again for each connection
    password_provider: str | None  # the dotted path of a function that gives the password


def app_options(entry: Mapping[str, Any]) -> AppOptions:
    """Read the key of an entry of DATABASES; one written by hand may have none, or no dict."""
    given = entry.get(KEY)
    return cast(AppOptions, given if isinstance(given, Mapping) else {})


def options_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """OPTIONS of an entry of DATABASES; empty where it is wrong, which is E005."""
    given = entry.get("OPTIONS")
    return given if isinstance(given, Mapping) else {}
