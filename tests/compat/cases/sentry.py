"""sentry-sdk wraps Django's cursors and BaseDatabaseWrapper.connect."""

from __future__ import annotations

from typing import Any

from tests.compat.case import Case, in_threads

sent: list[Any] = []


def setup() -> None:
    import sentry_sdk
    from sentry_sdk.integrations.django import DjangoIntegration

    class Kept(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope: Any) -> None:
            sent.extend(item.payload.json for item in envelope.items)

    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=Kept,
        traces_sample_rate=1.0,
        integrations=[DjangoIntegration()],
    )


def check() -> None:
    import sentry_sdk
    from django.contrib.auth.models import Group

    def request(number: int) -> None:
        with sentry_sdk.start_transaction(name=f"request {number}"):
            assert Group.objects.count() == 0

    in_threads(10, request)
    sentry_sdk.flush(10)
    operations = [span["op"] for each in sent if each for span in each.get("spans", [])]
    assert operations.count("db") >= 10, operations


CASE = Case(
    packages=["sentry-sdk"],
    tried="a `db` span for each of 10 queries in threads",
    setup=setup,
    check=check,
)
