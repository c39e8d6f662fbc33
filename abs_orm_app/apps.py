"""The Django app: adds system checks, commands, and a page in the admin."""

from contextlib import suppress
from importlib import import_module
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.config.address import POSTGIS, POSTGRESQL
from abs_orm_app.config.variables import refuse


class AbsOrmAppConfig(AppConfig):
    name = "abs_orm_app"
    verbose_name = "Database"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Importing the models, which comes next, already needs the default database's engine.
        if "ENGINE" in settings.DATABASES:
            refuse(['DATABASES is an entry; it must be {"default": database_from_env()}.'])
        engine = settings.DATABASES.get("default", {}).get("ENGINE") or ""
        ours = (POSTGRESQL, POSTGIS)
        if engine.partition(".")[0] == self.name and engine not in ours:
            refuse([f"There is no ENGINE {engine!r}, only {' and '.join(map(repr, ours))}."])

    def import_models(self) -> None:
        super().import_models()
        # The model represents the page, and is defined in the page's package.
        if apps.is_installed("django.contrib.admin"):
            self.models_module = import_module("abs_orm_app.integrations.admin_page.models")

    def ready(self) -> None:
        from abs_orm_app.checks.system_checks import register_checks

        register_checks()
        # It tracks the requests; if the first query imported it, it would miss the first request.
        with suppress(ImportError, ImproperlyConfigured):  # a project without psycopg
            import_module("abs_orm_app.backends.leasing")
        if apps.is_installed("django.contrib.admin"):
            from django.contrib import admin

            from abs_orm_app.integrations.admin_page.admin import PoolsAdmin
            from abs_orm_app.integrations.admin_page.models import Pools

            if not admin.site.is_registered(Pools):
                admin.site.register(Pools, PoolsAdmin)
        if apps.is_installed("django_prometheus"):
            from abs_orm_app.integrations import prometheus

            prometheus.register()
        if apps.is_installed("django_async_backend"):
            from abs_orm_app.integrations import async_backend

            async_backend.register()
