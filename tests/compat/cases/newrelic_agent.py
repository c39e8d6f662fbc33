"""newrelic wraps psycopg.connect and psycopg_pool."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def setup() -> None:
    import newrelic.agent

    newrelic.agent.initialize()


def check() -> None:
    import newrelic.agent
    from django.contrib.auth.models import Group

    application = newrelic.agent.register_application(timeout=1)

    def request(number: int) -> int:
        with newrelic.agent.BackgroundTask(application, name=f"request {number}"):
            return Group.objects.count()

    assert in_threads(10, request) == [0] * 10


CASE = Case(
    packages=["newrelic"],
    variables={"NEW_RELIC_DEVELOPER_MODE": "true", "NEW_RELIC_APP_NAME": "shop"},
    tried="10 queries in threads with its instrumentation, in developer mode",
    setup=setup,
    check=check,
)
