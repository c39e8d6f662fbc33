"""The distributions, and a new project that follows README."""

from __future__ import annotations

import re
import shlex
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path

import django
import pytest

from tests.support.readme import ROOT, block, embed, run
from tests.support.servers import Server

REPOSITORY = ("abs_orm_app", "abs_project", "benchmarks", "docs", "tests")
EXTRAS = {"embedded", "watch", "prometheus", "opentelemetry", "health"}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=1")


def files(*directories: str) -> set[str]:
    """The files below these directories of the repository."""
    return {
        str(path.relative_to(ROOT))
        for directory in directories
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    # Not `python -m build`, which would import the directory `build` of the checkout.
    run(Path(sys.executable).with_name("pyproject-build"), "-s", "-o", directory, ROOT, cwd=ROOT)
    (made,) = directory.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist: in the checkout, an old directory `build` would be included."""
    run(*PIP, "wheel", "--no-deps", sdist, cwd=sdist.parent)
    (made,) = sdist.parent.glob("*.whl")
    return made


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Message:
    (path,) = (name for name in names(wheel) if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(path).decode())


def test_the_source_distribution_contains_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert files(*REPOSITORY) - packed == set()
    assert {"Makefile", "README.md", "manage.py", "pyproject.toml", "requirements.txt"} <= packed


def test_the_wheel_contains_only_the_app(wheel: Path) -> None:
    packed = {name for name in names(wheel) if ".dist-info/" not in name}
    assert packed == files("abs_orm_app")
    assert "abs_orm_app/py.typed" in packed


def test_the_wheel_has_the_extras(wheel: Path) -> None:
    assert EXTRAS - set(metadata(wheel).get_all("Provides-Extra", [])) == set()


def test_the_wheel_requires_neither_a_test_runner_nor_an_embedded_server(wheel: Path) -> None:
    needed = [line for line in metadata(wheel).get_all("Requires-Dist", []) if "extra" not in line]
    named = {re.split(r"[^\w-]", line.lower())[0] for line in needed}
    assert named == {"django", "psycopg", "psycopg-pool", "django-environ", "dj-database-url"}


# README's lines, unchanged


def install_command(wheel: Path) -> Sequence[str]:
    pip, *arguments = shlex.split(block("", "pip install"))
    assert pip == "pip"
    return [str(wheel) if argument == "." else argument for argument in arguments]


def shell_line(url: str) -> tuple[dict[str, str], Sequence[str]]:
    variable, python, *arguments = shlex.split(block("", "DATABASE_URL="))
    name, _, _ = variable.partition("=")
    assert python == "python"
    return {name: url}, arguments


def test_the_lines_of_the_readme_make_a_new_project_use_the_pool(
    wheel: Path, server: Server, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    same_django = f"django=={django.__version__}"
    install = install_command(wheel)
    run(*PIP, "--python", python, *install, same_django, "--no-compile", cwd=tmp_path)

    run(python, "-m", "django", "startproject", "shop", tmp_path, cwd=tmp_path)
    embed(tmp_path / "shop" / "settings.py")

    environ, check_pool = shell_line(server.tcp_url)
    assert "no issues" in run(python, "manage.py", "check", cwd=tmp_path, **environ)
    printed = run(python, *check_pool, cwd=tmp_path, **environ)
    assert "abs_orm_app.backends.postgresql" in printed
    assert "OK" in run(python, "manage.py", "migrate", cwd=tmp_path, **environ)
    with server.admin() as admin:
        assert admin.execute("select count(*) from django_migrations").fetchone() != (0,)
