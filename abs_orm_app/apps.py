"""The Django app. It has no models and no URLs; it adds system checks and commands."""

from django.apps import AppConfig, apps


class AbsOrmAppConfig(AppConfig):
    name = "abs_orm_app"
    verbose_name = "Connection pool"

    def ready(self) -> None:
        from abs_orm_app.checks.system_checks import register_checks

        register_checks()
        if apps.is_installed("django_prometheus"):
            from abs_orm_app.integrations import prometheus

            prometheus.register()
