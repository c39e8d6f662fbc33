"""Extensions of contrib, which Debian's server has and the embedded one has not."""

from __future__ import annotations

from django.db import connection

from tests.compat.case import Case, in_threads


def check() -> None:
    from django.contrib.postgres.signals import get_hstore_oids

    with connection.cursor() as cursor:
        for name in ("hstore", "citext", "pg_trgm", "unaccent", "btree_gin"):
            cursor.execute(f"CREATE EXTENSION {name}")
    connection.close()
    get_hstore_oids.cache_clear()  # as Django's HStoreExtension does

    def read(_: int) -> object:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 'a=>1'::hstore, 'A'::citext = 'a', similarity('a', 'a')")
            return cursor.fetchone()

    assert in_threads(40, read) == [({"a": "1"}, True, 1.0)] * 40


CASE = Case(
    packages=["django"],
    apps=["django.contrib.postgres"],
    tried="hstore, citext and pg_trgm in 8 threads",
    note="`django.contrib.postgres`: the [embedded server](#development) has no contrib.",
    contrib=True,
    check=check,
)
