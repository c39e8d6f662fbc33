"""Ten faults on a real server: the exception, the log, `check_pool`, the page, the health view and
the metrics tell the same cause, and none of them is green.

    python -m tests.integrations.night --write    # the table in docs/troubleshooting.md
"""

from __future__ import annotations

import logging

import pytest
from django.core.management import call_command
from pytest_django.plugin import DjangoDbBlocker

from tests.integrations.night import FAULTS, PAGE, PLACE, PLACES, Fault, look, table

MOST_LINES = 4  # of the log in the first seconds of a fault


@pytest.fixture(scope="module")
def tables(django_db_blocker: DjangoDbBlocker) -> None:
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0)


@pytest.mark.usefixtures("tables", "unblocked")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_has_one_cause_wherever_one_looks(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "abs_orm_app.pool"):
        told = look(
            fault,
            lambda: "\n".join(
                record.getMessage()
                for record in caplog.records
                if record.name == "abs_orm_app.pool"
            ),
        )
    assert {place: told.cause_in(place) for place in PLACES} == dict.fromkeys(PLACES, fault.cause)
    assert told.green() == []
    assert "again, after" not in told.texts["log"], "it lasts"
    assert len(told.texts["log"].splitlines()) <= MOST_LINES
    assert [part for part in fault.says if part not in told.texts["exception"]] == []


def test_the_table_of_the_faults_is_that_of_the_docs() -> None:
    assert PLACE.search(PAGE.read_text())[0] == table()  # type: ignore[index]
