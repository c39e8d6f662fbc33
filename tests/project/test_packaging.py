"""The distributions, and a new project that follows README."""

from __future__ import annotations

import re
import shlex
import shutil
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
from tests.support.system import needs_git

IN_THE_APP = ("abs_orm_app/.env", "abs_orm_app/checks/guide/notes.md", "abs_orm_app/local.py")
UNTRACKED = (
    ".env",
    ".pgdata/PG_VERSION",
    "docs/.env",
    "docs/dump.sql",
    "tests/key.pem",
    *IN_THE_APP,
)
EXTRAS = {"embedded", "prometheus", "opentelemetry", "health"}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=1")


pytestmark = [
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout of Git"),
    needs_git,
]


def tracked(directory: str = ".") -> set[str]:
    """The files below this directory of the repository."""
    listed = run("git", "ls-files", "-z", directory, cwd=ROOT)
    return {name for name in listed.split("\0") if name}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with this one's files, and with some that nobody shall have."""
    directory = tmp_path_factory.mktemp("checkout")
    run("git", "init", "--quiet", directory, cwd=ROOT)
    for name in tracked():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    run("git", "add", "--all", "--force", cwd=directory)
    for name in UNTRACKED:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("secret")
    return directory


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    # Not `python -m build`, which would import a directory `build` of the checkout.
    build = Path(sys.executable).with_name("pyproject-build")
    run(build, "-s", "-o", directory, checkout, cwd=checkout)
    (made,) = directory.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist: the checkout has files that nobody shall have."""
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


def test_the_source_distribution_contains_the_files_that_git_tracks_and_no_other(
    sdist: Path,
) -> None:
    with tarfile.open(sdist) as archive:
        packed = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    made = {name for name in packed if name.startswith("abs_orm_app.egg-info/")}
    assert packed - made - {"PKG-INFO", "setup.cfg"} == tracked()


def test_a_source_distribution_can_be_made_from_an_unpacked_one(
    sdist: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        names = {each.name for each in archive.getmembers() if each.isfile()}
    (unpacked,) = tmp_path.iterdir()
    build = Path(sys.executable).with_name("pyproject-build")
    run(build, "-s", "-o", tmp_path, unpacked, cwd=unpacked)
    (again,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(again) as archive:
        assert {each.name for each in archive.getmembers() if each.isfile()} == names


def test_the_wheel_contains_only_the_app(wheel: Path) -> None:
    packed = {name for name in names(wheel) if ".dist-info/" not in name}
    assert packed == tracked("abs_orm_app")
    assert "abs_orm_app/py.typed" in packed


def test_an_upgrade_from_the_checkout_installs_no_module_that_was_removed(
    checkout: Path, tmp_path: Path
) -> None:
    """`pip install /path/to/abs_orm_app` leaves a directory `build` there."""
    old = checkout / "build" / "lib" / "abs_orm_app" / "removed.py"
    old.parent.mkdir(parents=True)
    old.touch()
    run(*PIP, "wheel", "--no-deps", checkout, cwd=tmp_path)
    (made,) = tmp_path.glob("*.whl")
    assert "abs_orm_app/removed.py" not in names(made)


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
    assert "/path/to/abs_orm_app" in arguments
    return [str(wheel) if each == "/path/to/abs_orm_app" else each for each in arguments]


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
    assert "20 + 10 connections per process" in printed
    assert "OK" in run(python, "manage.py", "migrate", cwd=tmp_path, **environ)
    with server.admin() as admin:
        assert admin.execute("select count(*) from django_migrations").fetchone() != (0,)
