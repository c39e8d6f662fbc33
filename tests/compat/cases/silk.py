"""django-silk records the SQL of each request, in the same database."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def check() -> None:
    from django.test import Client
    from silk.models import Request

    assert in_threads(10, lambda _: Client().get("/").status_code) == [200] * 10
    recorded = [each.num_sql_queries for each in Request.objects.all()]
    assert recorded == [1] * 10, recorded


CASE = Case(
    packages=["django-silk"],
    apps=["silk"],
    middleware=["silk.middleware.SilkyMiddleware"],
    tried="it records the query of each of 10 requests in threads",
    check=check,
)
