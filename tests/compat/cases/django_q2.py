"""django-q2's cluster with the database as its broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from tests.compat.case import Case

TASKS = 80


def check() -> None:
    from django_q.models import Success
    from django_q.tasks import async_task

    for number in range(TASKS):
        async_task("math.factorial", number)
    command = [sys.executable, "-m", "django", "qcluster"]
    cluster = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 40
    try:
        while (done := Success.objects.count()) < TASKS and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        cluster.terminate()
        try:
            cluster.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(cluster.pid, signal.SIGKILL)
    assert done == TASKS, f"{done} of {TASKS} tasks were done in a minute"


CASE = Case(
    packages=["django-q2"],
    apps=["django_q"],
    settings={
        "Q_CLUSTER": {"name": "compat", "workers": 4, "timeout": 20, "retry": 30, "orm": "default"}
    },
    tried="a cluster of 4 workers, with the database as broker, does 80 tasks",
    check=check,
)
