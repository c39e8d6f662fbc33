"""django-timescaledb puts its engine on top of another one."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def check() -> None:
    from django.contrib.auth.models import Group

    def make(number: int) -> None:
        Group.objects.create(name=str(number))

    in_threads(40, make)
    assert Group.objects.count() == 40


CASE = Case(
    packages=["django-timescaledb"],
    engine="timescale.db.backends.postgresql",
    tried="40 inserts in 8 threads; an empty extension stands in for TimescaleDB, so no hypertable",
    lines='TIMESCALE_DB_BACKEND_BASE = "abs_orm_app.backends.postgresql"',
    note="`ENGINE` stays `timescale.db.backends.postgresql`.",
    empty_extension="timescaledb",
    check=check,
)
