"""django-cachalot caches the aliases whose engine it knows by name."""

from __future__ import annotations

from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.compat.case import Case, in_threads


def check() -> None:
    from django.contrib.auth.models import Group

    in_threads(20, lambda number: Group.objects.create(name=str(number)))
    assert Group.objects.count() == 20
    with CaptureQueriesContext(connection) as queries:
        assert Group.objects.count() == 20
    assert not queries, "the second query was not cached"
    Group.objects.all().delete()
    assert Group.objects.count() == 0


CASE = Case(
    packages=["django-cachalot"],
    apps=["cachalot"],
    tried="a repeated query is cached, a write invalidates it",
    lines='CACHALOT_ADDITIONAL_SUPPORTED_DATABASES = {"abs_orm_app.backends.postgresql"}',
    note="Without it, nothing is cached (`abs_orm_app.W003`).",
    check=check,
)
