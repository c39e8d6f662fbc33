"""A real Celery worker with forked children; its broker is a directory of files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from celery import Celery, signals  # type: ignore[import-untyped]
from django.db import connection

from tests.support.processes import DEADLINE, backend, backends, program
from tests.support.servers import Server, wait_until

CHILDREN = 2
TASKS = 20
DIRECTORY = "TEST_CELERY_DIRECTORY"


def make_app(directory: str) -> Celery:
    """Return a Celery app whose broker keeps its messages in `directory`."""
    made = Celery("tests", broker="filesystem://")
    made.conf.broker_transport_options = {
        "data_folder_in": directory,
        "data_folder_out": directory,
        "control_folder": f"{directory}/control",
        "polling_interval": 0.05,  # seconds
    }
    made.task(name="answer", ignore_result=True)(answer)
    return made


def answer() -> None:
    """Record the process of the task and the backend of its query."""
    time.sleep(0.05)  # so that one child cannot do all tasks
    with connection.cursor() as cursor:
        cursor.execute("insert into answer values (%s, pg_backend_pid())", [os.getpid()])


# What the worker runs: `celery --app=tests.backends.test_celery`.
if DIRECTORY in os.environ:
    app = make_app(os.environ[DIRECTORY])

    @signals.worker_init.connect  # type: ignore[untyped-decorator]
    def use_the_pool_before_the_fork(**_: object) -> None:
        sys.stdout.write(f"{backend()}\n")
        sys.stdout.flush()


def answers(server: Server) -> list[tuple[int, int]]:
    with server.admin() as admin:
        return [(row[0], row[1]) for row in admin.execute("select * from answer").fetchall()]


@pytest.mark.server(
    {"log_min_messages": "debug1"}, sql=["create table answer (process int, session int)"]
)
def test_the_children_of_a_worker_have_connections_of_their_own(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "control").mkdir()
    # Before the worker starts, because it may read a file that is still being written.
    for _ in range(TASKS):
        make_app(str(tmp_path)).send_task("answer")
    command = [sys.executable, "-m", "celery", "--app=tests.backends.test_celery", "worker"]
    command += ["--pool=prefork", f"--concurrency={CHILDREN}", "--loglevel=error"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with program(command, server, DB_POOL_SIZE="4", **{DIRECTORY: str(tmp_path)}) as worker:
        wait_until(lambda: len(answers(server)) == TASKS, "the tasks", DEADLINE)
        result = worker.stop()
    wait_until(lambda: not backends(server), "the sessions to end")
    done, log = answers(server), server.log
    assert result.status == 0
    assert not [word for word in ("Traceback", "ERROR", "ignored") if word in result.errors]
    assert len({process for process, _ in done}) == CHILDREN
    assert int(result.output.split()[0]) not in {session for _, session in done}
    assert "unexpected EOF" not in log  # each session was closed properly
