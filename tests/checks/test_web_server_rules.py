"""The rules on the web server, and how the web server is recognised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.test import override_settings

from abs_orm_app.checks.web_server_rules import web_findings
from abs_orm_app.checks.without_server import deployment_findings
from abs_orm_app.facts.web_server import WebServer, web_server
from tests.support.aliases import from_env, ids

TIMEOUTS = {
    "--timeout 60": 60.0,
    "--timeout=60 -w 4": 60.0,
    "-t 60": 60.0,
    "-t60 app.wsgi": 60.0,
    "-w 4 --bind '[::]:80'": 30.0,
    "--timeout 0": None,
    "--timeout 60 --threads 4": None,
    "--timeout 60 --threads=4": None,
    "--timeout 60 -k gevent": None,
    "--timeout 60 -k gthread": None,
    "--timeout 60 -c conf.py": None,
    "--timeout many": None,
    "--timeout": None,
    "--bind 'x": None,
    "": None,
}


@pytest.mark.parametrize("arguments", TIMEOUTS)
def test_only_the_timeout_of_a_sync_worker_is_read(arguments: str) -> None:
    found = web_server({"GUNICORN_CMD_ARGS": arguments}, ["manage.py", "check_pool"])
    assert found.worker_timeout == TIMEOUTS[arguments]


@pytest.mark.parametrize("program", ["/venv/bin/gunicorn", "/lib/gunicorn/__main__.py"])
def test_gunicorns_arguments_win_over_its_environment(program: str) -> None:
    assert web_server({}, [program, "app.wsgi"]).worker_timeout == 30
    environ = {"GUNICORN_CMD_ARGS": "-t 60"}
    assert web_server(environ, [program, "-t", "90", "app.wsgi"]).worker_timeout == 90
    assert web_server({}, ["manage.py", "--timeout", "9"]) == WebServer()


def test_a_gunicorn_configuration_file_makes_the_timeout_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"GUNICORN_CMD_ARGS": "-t 60"}
    assert web_server(environ, ["manage.py"]).worker_timeout == 60
    (tmp_path / "gunicorn.conf.py").touch()
    assert web_server(environ, ["manage.py"]).worker_timeout is None


def test_gunicorn_reads_its_timeout_in_the_same_way() -> None:
    code = (
        "import sys; sys.argv = ['gunicorn', 'x'];"
        "from gunicorn.app.wsgiapp import WSGIApplication; print(WSGIApplication('').cfg.timeout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"GUNICORN_CMD_ARGS": "-t60 -w 4"}, capture_output=True,
        text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.strip() == "60"


@pytest.mark.parametrize(
    ("timeout", "expected"), [("29.9", []), ("30", ["W017"]), ("60", ["W017"])]
)
def test_a_pool_timeout_that_outlives_the_worker_is_found(
    timeout: str, expected: list[str]
) -> None:
    found = web_findings([from_env(DB_POOL_TIMEOUT=timeout)], WebServer(worker_timeout=30.0))
    assert ids(found) == expected


def test_without_a_worker_timeout_or_without_a_pool_there_is_no_finding() -> None:
    assert web_findings([from_env()], WebServer()) == []
    assert web_findings([from_env(DB_POOL_MODE="null")], WebServer(worker_timeout=30.0)) == []


@pytest.mark.parametrize(
    ("argv", "arguments"),
    [
        (["/venv/bin/uvicorn", "app.asgi:application"], ""),
        (["/venv/bin/daphne", "app.asgi:application"], ""),
        (["manage.py"], "-k uvicorn.workers.UvicornWorker"),
        (["manage.py"], "-k uvicorn_worker.UvicornWorker --threads 4"),
    ],
)
def test_persistent_connections_under_asgi_are_found(argv: list[str], arguments: str) -> None:
    web = web_server({"GUNICORN_CMD_ARGS": arguments} if arguments else {}, argv)
    assert ids(web_findings([from_env(DB_POOL_MODE="persistent")], web)) == ["W018"]
    assert web_findings([from_env()], web) == []


def test_a_project_with_an_asgi_application_counts_as_asgi() -> None:
    databases = [from_env(DB_POOL_MODE="persistent")]
    assert deployment_findings(databases) == []
    with override_settings(ASGI_APPLICATION="shop.asgi.application"):
        [found] = deployment_findings(databases)
    assert found.id == "abs_orm_app.W018"
    assert "(ASGI_APPLICATION)" in found.message
