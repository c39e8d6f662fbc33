"""django-pghistory reads the connection's status and puts a SELECT in front of each write."""

from __future__ import annotations

from django.db import connection

from tests.compat.case import Case, in_threads


def check() -> None:
    import pghistory
    from django.contrib.auth.models import Group

    def write(number: int) -> None:
        with pghistory.context(number=number):
            Group.objects.create(name=str(number))

    in_threads(20, write)
    assert Group.objects.count() == 20
    assert connection.pool.statistics.cleaned == 0


CASE = Case(
    packages=["django-pghistory"],
    apps=["pgtrigger", "pghistory"],
    tried="20 writes with a context in threads, after which no session needs to be cleaned",
    check=check,
)
