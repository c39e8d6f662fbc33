"""steady-queue forks a supervisor's workers, whose threads do tasks and live on."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.compat.case import Case
from tests.support.servers import wait_until

TASKS = 40


def check() -> None:
    from django.contrib.auth.models import Group

    from tests.compat.shop.django_task import make

    for number in range(TASKS):
        make.enqueue(number)
    command = [sys.executable, "-m", "django", "steady_queue"]
    worker = subprocess.Popen(command, env={**os.environ, "COMPAT_CASE": "steady_queue_tasks"})
    try:
        wait_until(lambda: Group.objects.count() == TASKS, "the tasks to be done", 40)
    finally:
        worker.terminate()
        worker.wait(30)


CASE = Case(
    packages=["steady-queue"],
    apps=["steady_queue"],
    settings={"TASKS": {"default": {"BACKEND": "steady_queue.backend.SteadyQueueBackend"}}},
    tried="its workers do 40 tasks on 4 connections each",
    python=(3, 12),
    check=check,
)
