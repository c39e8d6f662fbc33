"""APScheduler runs jobs in threads that live on."""

from __future__ import annotations

import time

from tests.compat.case import Case
from tests.support.servers import wait_until

JOBS = 80


def make(number: int) -> None:
    from django.contrib.auth.models import Group

    Group.objects.create(name=str(number))
    time.sleep(0.05)  # what else it does


def check() -> None:
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler
    from django.contrib.auth.models import Group

    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(12)})
    for number in range(JOBS):
        scheduler.add_job(make, args=[number], misfire_grace_time=60)
    scheduler.start()
    wait_until(lambda: Group.objects.count() == JOBS, "the jobs to be done", 30)
    scheduler.shutdown()


CASE = Case(packages=["apscheduler"], tried="12 threads do 80 jobs on 4 connections", check=check)
