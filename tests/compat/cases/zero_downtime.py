"""django-pg-zero-downtime-migrations has an engine with a schema editor of its own."""

from __future__ import annotations

from django.db import connection

from tests.compat.case import Case


def check() -> None:
    from django.contrib.auth.models import Group

    editor = connection.SchemaEditorClass
    assert editor.__module__.startswith("django_zero_downtime_migrations"), editor
    assert Group.objects.count() == 0


CASE = Case(
    packages=["django-pg-zero-downtime-migrations"],
    engine="tests.compat.zero_downtime",
    settings={"ZERO_DOWNTIME_MIGRATIONS_RAISE_FOR_UNSAFE": True},
    tried="`migrate` with the package's schema editor",
    note="Combine both in [an engine of your own](#two-engines-in-one).",
    check=check,
)
