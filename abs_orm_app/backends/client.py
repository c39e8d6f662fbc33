"""`manage.py dbshell` with the password that is valid now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.backends.postgresql.client import DatabaseClient

from abs_orm_app.config.credentials import current_password
from abs_orm_app.config.entry import app_options

LIBPQ = {"HOST": "host", "PORT": "port", "NAME": "dbname", "USER": "user"}


class Client(DatabaseClient):
    """Django's client; it asks DB_PASSWORD_PROVIDER and DB_PASSWORD_FILE as the pool does."""

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        params = {libpq: settings_dict[key] for key, libpq in LIBPQ.items() if settings_dict[key]}
        password = current_password(app_options(settings_dict), params)
        if password is not None:
            settings_dict = {**settings_dict, "PASSWORD": password}
        return super().settings_to_cmd_args_env(settings_dict, parameters)
