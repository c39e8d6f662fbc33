"""graphene's resolvers run in threads that a request begins and nobody ends for Django."""

from __future__ import annotations

import threading
import time
from typing import Any

from tests.compat.case import Case, in_threads

FIELDS, REQUESTS = 5, 40


def check() -> None:
    import graphene
    from django.contrib.auth.models import Group

    def count(_root: Any, _info: Any) -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(Group.objects.count()))
        thread.start()
        thread.join()
        return found[0]

    names = [f"count{number}" for number in range(FIELDS)]
    fields = {name: graphene.Int(resolver=count) for name in names}
    schema = graphene.Schema(query=type("Query", (graphene.ObjectType,), fields))
    text = "{" + " ".join(names) + "}"

    def request(_: int) -> Any:
        return schema.execute(text)

    began = time.monotonic()
    for done in map(request, range(REQUESTS)):
        assert not done.errors, done.errors
        assert list(done.data.values()) == [0] * FIELDS
    took = (time.monotonic() - began) / REQUESTS
    assert took < 0.25, f"{took:.3f} s a request"  # 0.025 on an idle machine
    for done in in_threads(REQUESTS, request):
        assert not done.errors, done.errors


CASE = Case(
    packages=["graphene-django"],
    apps=["graphene_django"],
    tried="40 requests, each with 5 threads that query and end",
    check=check,
)
