"""huey's db_task returns the connection after each task."""

from __future__ import annotations

import time


from tests.compat.case import Case

TASKS = 40


def check() -> None:
    from django.contrib.auth.models import Group

    from huey.contrib.djhuey import HUEY, db_task

    @db_task()
    def make(number: int) -> None:
        Group.objects.create(name=str(number))

    for number in range(TASKS):
        make(number)
    consumer = HUEY.create_consumer(workers=8, periodic=False, backoff=1.1, max_delay=0.1)
    consumer.start()
    deadline = time.monotonic() + 30
    while Group.objects.count() < TASKS and time.monotonic() < deadline:
        time.sleep(0.1)
    consumer.stop(graceful=True)
    assert Group.objects.count() == TASKS


CASE = Case(
    packages=["huey"],
    apps=["huey.contrib.djhuey"],
    settings={"HUEY": {"huey_class": "huey.MemoryHuey", "immediate": False}},
    tried="8 worker threads do 40 tasks on 4 connections",
    note="Use `db_task`: `task` does not return the connection.",
    check=check,
)
