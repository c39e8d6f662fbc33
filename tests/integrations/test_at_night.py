"""Ten faults on a real server: the exception, the log, `check_pool`, the page, the health view and
the metrics tell the same cause, and none of them is green.

    python -m tests.integrations.night --write    # the table in docs/troubleshooting.md
"""

from __future__ import annotations

from pathlib import Path

import pytest
from django.core.management import call_command
from pytest_django.plugin import DjangoDbBlocker

from tests.integrations.night import FAULTS, PAGE, PLACE, PLACES, WORDS, Fault, look, table
from tests.support.pools import Call
from tests.support.processes import DEADLINE, GUNICORN, web_server
from tests.support.projects import manage
from tests.support.servers import Server, wait_until

MOST_LINES = 4  # of the log in the first seconds of a fault

# After the first request, a thread holds the one connection, and no statement runs on it.
HOLD = """
def post_worker_init(worker):
    import threading, time
    from django.core.signals import request_finished
    from django.db import connection
    def hold():
        held = connection.pool.getconn()
        time.sleep(60)
    def begin(**_):
        request_finished.disconnect(begin)
        threading.Thread(target=hold, daemon=True).start()
    request_finished.connect(begin, weak=False)
"""


@pytest.fixture(scope="module")
def tables(django_db_blocker: DjangoDbBlocker) -> None:
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0)


@pytest.mark.usefixtures("tables", "unblocked")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_has_one_cause_wherever_one_looks(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    def log() -> str:
        records = [record for record in caplog.records if record.name == "abs_orm_app.pool"]
        return "\n".join(record.getMessage() for record in records)

    told = look(fault, log)
    assert {place: told.cause_in(place) for place in PLACES} == dict.fromkeys(PLACES, fault.cause)
    assert told.green() == []
    assert "again, after" not in told.texts["log"], "it lasts"
    assert len(told.texts["log"].splitlines()) <= MOST_LINES
    assert [part for part in fault.says if part not in told.texts["exception"]] == []


def test_check_pool_tells_what_the_pools_of_other_processes_say(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    options = ("--worker-class=gthread", "--threads=4", f"--config={tmp_path}/hold.py")
    small = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0"}
    with web_server(GUNICORN, server, *options, **small) as web:
        of_server = {"DATABASE_URL": server.url, "TMPDIR": str(Path(web.socket).parent)}
        waiting = Call(web.get, ["/"] * 3)
        wait_until(lambda: WORDS["exhausted"] in web.program.errors, "the log")
        ran = manage("check_pool", **of_server)
    waiting.join(DEADLINE)
    last = ran.stdout.splitlines()[-1]
    assert "! Now" in ran.stdout
    assert last.startswith(
        "OK: default can be used, but requests may be waiting: the pool is exhaus"
    )
    assert ": 3 requests waiting; one is held by thread " in last
    assert ran.returncode == 0


def test_the_table_of_the_faults_is_that_of_the_docs() -> None:
    assert PLACE.search(PAGE.read_text())[0] == table()  # type: ignore[index]
