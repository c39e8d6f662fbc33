"""django-tenants puts its engine on top of another one."""

from __future__ import annotations

from django.db import connection

from tests.compat.case import Case, in_threads


def check() -> None:
    from django.contrib.auth.models import Group

    from django.core.management import call_command
    from django_tenants.utils import schema_context

    call_command("migrate_schemas", shared=True, verbosity=0)
    with connection.cursor() as cursor:
        for number in range(3):
            cursor.execute(f"CREATE SCHEMA t{number}")
            cursor.execute(f"CREATE TABLE t{number}.auth_group (LIKE public.auth_group)")
            cursor.execute(f"INSERT INTO t{number}.auth_group VALUES (1, 'of t{number}')")

    def read(number: int) -> None:
        schema = f"t{number % 3}"
        with schema_context(schema):
            assert [group.name for group in Group.objects.all()] == [f"of {schema}"]

    in_threads(60, read)


CASE = Case(
    packages=["django-tenants"],
    settings={
        "DATABASE_ROUTERS": ["django_tenants.routers.TenantSyncRouter"],
        "SHARED_APPS": [
            "django_tenants",
            "tests.compat.tenancy",
            "django.contrib.auth",
            "django.contrib.contenttypes",
        ],
        "TENANT_APPS": ["django.contrib.auth", "django.contrib.contenttypes"],
        "INSTALLED_APPS": [
            "abs_orm_app",
            "django_tenants",
            "tests.compat.tenancy",
            "django.contrib.auth",
            "django.contrib.contenttypes",
        ],
        "TENANT_MODEL": "tenancy.Client",
        "TENANT_DOMAIN_MODEL": "tenancy.Domain",
    },
    engine="django_tenants.postgresql_backend",
    tried="8 threads read three tenants' schemas on 4 connections; none sees another's rows",
    lines='ORIGINAL_BACKEND = "abs_orm_app.backends.postgresql"',
    note="`ENGINE` stays `django_tenants.postgresql_backend`.",
    check=check,
    migrates=False,
)
