"""pytest-django, with the variables set before it reads the settings."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.compat.case import Case

SETTINGS = """
from abs_orm_app.environment import database_from_env

SECRET_KEY = "tests"
INSTALLED_APPS = ["abs_orm_app", "django.contrib.contenttypes", "django.contrib.auth"]
DATABASES = {"default": database_from_env()}
"""
INI = """
[pytest]
DJANGO_SETTINGS_MODULE = shop_settings
pythonpath = .
addopts = -p no:cacheprovider
"""
RECIPE = " -p abs_orm_app.integrations.pytest_without_pool"
TEST = """
import pytest
from django.contrib.auth.models import Group
from django.db import connection

@pytest.mark.django_db
def test_the_mode():
    Group.objects.create(name="a")
    assert (connection.pool is None) is {without}

@pytest.mark.django_db(transaction=True)
def test_tables_are_emptied():
    assert not Group.objects.exists()
"""


def check() -> None:
    for without in (True, False):
        with tempfile.TemporaryDirectory() as directory:
            project = Path(directory)
            (project / "shop_settings.py").write_text(SETTINGS)
            recipe = RECIPE if without else ""
            (project / "pytest.ini").write_text(f"{INI.strip()}{recipe}\n")
            (project / "test_shop.py").write_text(TEST.format(without=without))
            run_pytest(project)


def run_pytest(project: Path) -> None:
    """Run pytest as its command, which has neither the project nor the settings on its path."""
    ours = ("COMPAT_CASE", "DJANGO_SETTINGS_MODULE")
    environ = {key: value for key, value in os.environ.items() if key not in ours}
    environ["PYTHONPATH"] = f"{Path.cwd()}"
    command = [sys.executable, "-c", "import pytest; raise SystemExit(pytest.console_main())", "-q"]
    done = subprocess.run(
        command, cwd=project, env=environ, capture_output=True, text=True, check=False
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


CASE = Case(
    packages=["pytest-django"],
    tried="tests with the pool; and without, by the recipe",
    note="If `pytest.ini` names the settings, a variable set in `conftest.py` comes too late.",
    check=check,
)
