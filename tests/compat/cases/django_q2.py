"""django-q2's cluster with the database as its broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from tests.compat.case import Case
from tests.support.servers import wait_until

TASKS = 80


def check() -> None:
    from django_q.models import Success
    from django_q.tasks import async_task

    for number in range(TASKS):
        async_task("math.factorial", number)
    command = [sys.executable, "-m", "django", "qcluster"]
    cluster = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(lambda: Success.objects.count() == TASKS, "the tasks to be done", 40)
    finally:
        cluster.terminate()
        try:
            cluster.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(cluster.pid, signal.SIGKILL)


CASE = Case(
    packages=["django-q2"],
    apps=["django_q"],
    settings={
        "Q_CLUSTER": {"name": "compat", "workers": 4, "timeout": 20, "retry": 30, "orm": "default"}
    },
    tried="a cluster of 4 workers, with the database as broker, does 80 tasks",
    check=check,
)
