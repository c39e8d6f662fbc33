"""django-postgres-extra puts its engine on top of another one."""

from __future__ import annotations

from django.db import connection

from tests.compat.case import Case, in_threads


def check() -> None:
    from psqlextra.query import ConflictAction
    from tests.compat.shop.counters import Counter

    with connection.schema_editor() as editor:
        editor.create_model(Counter)

    def upsert(number: int) -> None:
        objects = Counter.objects.on_conflict(["name"], ConflictAction.UPDATE)
        objects.insert(name=str(number % 5), count=number)

    in_threads(40, upsert)
    assert Counter.objects.count() == 5


CASE = Case(
    packages=["django-postgres-extra"],
    apps=["psqlextra"],
    engine="psqlextra.backend",
    tried="40 upserts in 8 threads",
    lines='POSTGRES_EXTRA_DB_BACKEND_BASE = "abs_orm_app.backends.postgresql"',
    note="`ENGINE` stays `psqlextra.backend`.",
    contrib=True,
    check=check,
)
