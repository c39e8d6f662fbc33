"""Rotating passwords, which are read again for each new connection."""

from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from psycopg import OperationalError

from abs_orm_app.config.entry import AppOptions
from abs_orm_app.config.variables import read_secret_file

# Takes the connection's libpq parameters (host, port, user, dbname) and returns the password.
Provider = Callable[[Mapping[str, Any]], str]


def is_rotating(options: AppOptions) -> bool:
    """Return True if the settings name a password source that is read for each connection."""
    return bool(options.get("password_file") or options.get("password_provider"))


def current_password(options: AppOptions, params: Mapping[str, Any]) -> str | None:
    """Return the currently valid password, or None if the settings name no source for it.

    Raises `ImproperlyConfigured` if the provider does not exist or returns no password, and
    `psycopg.OperationalError`, after which the pool retries, if the source fails.
    """
    if path := options.get("password_file"):
        try:
            return read_secret_file(path, "DB_PASSWORD_FILE")
        except ValueError as error:
            raise OperationalError(str(error)) from error
    if dotted := options.get("password_provider"):
        return _ask(dotted, params)
    return None


def _ask(dotted: str, params: Mapping[str, Any]) -> str:
    try:
        provider: Provider = import_string(dotted)
    except ImportError as error:
        raise ImproperlyConfigured(
            f"DB_PASSWORD_PROVIDER cannot be imported: {_missing(dotted, error)}."
        ) from None
    # Without the password in the settings, if there is one.
    asked = {key: value for key, value in params.items() if key != "password"}
    try:
        password = provider(asked)
    except Exception as error:
        kind = type(error).__name__
        raise OperationalError(f"DB_PASSWORD_PROVIDER failed: {kind}") from error
    if not isinstance(password, str) or not password:
        raise ImproperlyConfigured(
            f"DB_PASSWORD_PROVIDER returned {type(password).__name__}, not a password"
        )
    return password


def _missing(dotted: str, error: ImportError) -> str:
    """Describe what cannot be imported, but not the path, which may be a password by mistake."""
    if error.name and not f"{dotted}.".startswith(f"{error.name}."):
        return str(error)
    return "no such module or function; it takes a path like package.module.function"
