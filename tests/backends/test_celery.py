"""A real Celery worker with forked children; its broker is a directory of files."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery, signals  # type: ignore[import-untyped]
from django.db import connection

from abs_orm_app.pool.pool import HardenedPool
from tests.support.databases import MODES
from tests.support.processes import DEADLINE, Program, backend, backends, program
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server(
    {"log_min_messages": "debug1"}, sql=["create table answer (process int, session int)"]
)

CHILDREN = 2
TASKS = 20
AT_REST = 0.3  # seconds after a task
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
    made.task(name="answer_and_close", ignore_result=True)(answer_and_close)
    return made


def answer() -> None:
    """Record the process of the task and the backend of its query; later, what it then holds."""
    time.sleep(0.05)  # so that one child cannot do all tasks
    with connection.cursor() as cursor:
        cursor.execute("insert into answer values (%s, pg_backend_pid())", [os.getpid()])
    pool = connection.pool  # type: ignore[attr-defined]
    threading.Timer(AT_REST, lambda: note_what_is_held(pool)).start()


def note_what_is_held(pool: HardenedPool) -> None:
    path = Path(os.environ[DIRECTORY], "control", f"{os.getpid()}.held")
    path.write_text(str(len(pool.in_use)))


def answer_and_close() -> None:
    """The project itself closes the pool."""
    answer()
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]


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


@contextmanager
def worker(server: Server, directory: Path, task: str, **environ: str) -> Iterator[Program]:
    """A worker that has done TASKS of the task."""
    (directory / "control").mkdir()
    # Before the worker starts, because it may read a file that is still being written.
    for _ in range(TASKS):
        make_app(str(directory)).send_task(task)
    command = [sys.executable, "-m", "celery", "--app=tests.backends.test_celery", "worker"]
    command += ["--pool=prefork", f"--concurrency={CHILDREN}", "--loglevel=error"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with program(command, server, **environ, **{DIRECTORY: str(directory)}) as running:
        wait_until(lambda: len(answers(server)) == TASKS, "the tasks", DEADLINE)
        yield running


@pytest.mark.parametrize("release", MODES)
def test_a_child_has_a_pool_of_its_own_keeps_it_between_tasks_and_holds_no_connection(
    server: Server, tmp_path: Path, release: str
) -> None:
    environ = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0", "DB_POOL_RELEASE": release}
    with worker(server, tmp_path, "answer", **environ) as running:
        done = answers(server)
        children = {process for process, _ in done}
        held = [tmp_path / "control" / f"{process}.held" for process in children]
        wait_until(
            lambda: all(path.exists() and path.read_text() == "0" for path in held),
            "the children to hold nothing",
        )
        result = running.stop()
    wait_until(lambda: not backends(server), "the sessions to end")
    log = server.log
    assert result.status == 0
    assert not [word for word in ("Traceback", "ERROR", "ignored") if word in result.errors]
    assert len(children) == CHILDREN
    assert len({session for _, session in done}) == CHILDREN
    assert int(result.output.split()[0]) not in {session for _, session in done}
    assert "unexpected EOF" not in log  # each session was closed properly


def test_a_task_that_closes_the_pool_closes_it(server: Server, tmp_path: Path) -> None:
    with worker(server, tmp_path, "answer_and_close", DB_POOL_SIZE="1", DB_MAX_OVERFLOW="0"):
        pass
    assert len({session for _, session in answers(server)}) == TASKS
