"""The sample project."""

import pytest
from django.test import Client, RequestFactory
from django.views.debug import ExceptionReporter

from tests.support.projects import python
from tests.support.servers import Server


@pytest.mark.django_db
def test_a_page_says_which_server_process_answered(client: Client) -> None:
    first, second = client.get("/").json(), client.get("/slow/?ms=1").json()
    assert first == second
    assert first["pid"] > 1


@pytest.mark.parametrize("ms", ["", "-1", "1.5", "60001", "9" * 5000])
def test_an_invalid_time_is_a_bad_request(client: Client, ms: str) -> None:
    answer = client.get("/slow/", {"ms": ms})
    assert answer.status_code == 400
    assert answer.content == b"ms is not a whole number from 0 to 60000."


@pytest.mark.parametrize("name", ["DATABASE_URL", "REPLICA_DATABASE_URL", "DB_PASSWORD"])
def test_the_page_for_errors_hides_the_address_of_the_database(
    name: str, rf: RequestFactory
) -> None:
    request = rf.get("/")
    request.META[name] = "postgresql://app:s3cret@db/shop"  # where runserver puts the environment
    report = ExceptionReporter(request, ValueError, ValueError("x"), None)
    for text in (report.get_traceback_html(), report.get_traceback_text()):
        assert name in text
        assert "s3cret" not in text


def test_the_sample_project_passes_djangos_checks(server: Server) -> None:
    done = python("manage.py", "check", "--fail-level", "WARNING", DATABASE_URL=server.url)
    assert (done.returncode, done.stderr) == (0, "")
