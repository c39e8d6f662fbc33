"""huey's db_task returns the connection after each task."""

from __future__ import annotations

from tests.compat.case import Case
from tests.support.servers import wait_until

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
    wait_until(lambda: Group.objects.count() == TASKS, "the tasks to be done", 30)
    consumer.stop(graceful=True)


CASE = Case(
    packages=["huey"],
    apps=["huey.contrib.djhuey"],
    settings={"HUEY": {"huey_class": "huey.MemoryHuey", "immediate": False}},
    tried="8 worker threads do 40 tasks on 4 connections",
    note="Use `db_task`: `task` does not return the connection.",
    check=check,
)
