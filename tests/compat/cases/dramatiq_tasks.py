"""dramatiq, by django-dramatiq's middleware, returns connections after each message."""

from __future__ import annotations


from tests.compat.case import Case

TASKS = 40


def check() -> None:
    from django.contrib.auth.models import Group

    import dramatiq

    @dramatiq.actor
    def make(number: int) -> None:
        Group.objects.create(name=str(number))

    broker = dramatiq.get_broker()
    for number in range(TASKS):
        make.send(number)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=8)
    worker.start()
    broker.join(make.queue_name, fail_fast=True, timeout=30_000)
    worker.join()
    worker.stop()
    assert Group.objects.count() == TASKS


MIDDLEWARE = ["django_dramatiq.middleware.DbConnectionsMiddleware"]

CASE = Case(
    packages=["django-dramatiq", "dramatiq"],
    apps=["django_dramatiq"],
    settings={
        "DRAMATIQ_BROKER": {
            "BROKER": "dramatiq.brokers.stub.StubBroker",
            "OPTIONS": {},
            "MIDDLEWARE": MIDDLEWARE,
        }
    },
    tried="8 worker threads do 40 tasks on 4 connections",
    note="Keep `DbConnectionsMiddleware`, which is in its default list.",
    check=check,
)
