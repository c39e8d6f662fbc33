"""Run projects' own tests, and one under web servers, and write docs/embedding.md's second table.

python -m tests.projects                    # all, and write
python -m tests.projects rest_framework     # only this, and print
python -m tests.projects --healthchecks DIR # its source is there already
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.compat.__main__ import PAGE, environment, last_line
from tests.projects.inside import MODE, MODES, WEB
from tests.support.debian import DebianServer
from tests.support.readme import ROOT, ended

INSIDE = str(ROOT / "tests" / "projects" / "inside.py")
TIMEOUT = 900.0  # seconds of one run of tests
POOL = {"DB_POOL_SIZE": "4", "DB_MAX_OVERFLOW": "4", "DB_POOL_TIMEOUT": "10"}
HEALTHCHECKS = "https://github.com/healthchecks/healthchecks/archive/refs/heads/master.tar.gz"
UNWANTED = re.compile(r"(?i)django(-stubs.*)?(\[|==)|psycopg|mypy|mysqlclient|types-")
TABLE = re.compile(r"(?<=<!-- projects -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project: how its source is had, what it needs, and the command of its tests."""

    name: str
    find: Callable[[Path], Path]  # unpacks the source below a directory; returns where it is
    packages: Callable[[Path], Sequence[str]]
    command: Sequence[str]
    settings: str = ""
    serves: bool = False


def _unpack(data: bytes, below: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(below, filter="data")
    return next(path for path in below.iterdir() if path.is_dir())


def _rest_framework(below: Path) -> Path:
    """Its source release, which has its tests."""
    package = "djangorestframework"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-binary", package, "--dest", below, package], check=True)
    return _unpack(next(below.glob("*.tar.gz")).read_bytes(), below)


def _healthchecks(below: Path) -> Path:
    if chosen.healthchecks:
        return Path(chosen.healthchecks).resolve()
    try:
        with urllib.request.urlopen(HEALTHCHECKS, timeout=60) as answer:
            return _unpack(answer.read(), below)
    except OSError as error:
        sys.exit(
            f"The source of healthchecks cannot be fetched: {error}. Name a copy of it:"
            " make projects PROJECTS='--healthchecks DIR'; or try only the other project:"
            " make projects PROJECTS=rest_framework"
        )


def _requirements(source: Path) -> list[str]:
    """Those of its files, without a database's driver and what its linters need."""
    lines = [
        line
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (source / name).read_text().splitlines()
    ]
    return [line for line in lines if line.strip() and not UNWANTED.match(line)] + ["argon2-cffi"]


PROJECTS = {
    "healthchecks": Project(
        name="healthchecks",
        find=_healthchecks,
        packages=_requirements,
        command=("-m", "django", "test", "--noinput", "--verbosity=0", "hc.api", "hc.accounts"),
        settings="tests.projects.settings",
        serves=True,
    ),
    "rest_framework": Project(
        name="Django REST framework",
        find=_rest_framework,
        packages=lambda source: [str(source), "pytest", "pytest-django", "dj-database-url"],
        command=(INSIDE, "rest_framework"),
    ),
}


def _run(
    python: Path, arguments: Sequence[str], source: Path, mode: str, settings: str, **more: str
) -> str:
    environ = {**POOL, MODE: mode, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}", **more}
    if settings:
        environ["DJANGO_SETTINGS_MODULE"] = settings
    done = ended([python, *arguments], source, TIMEOUT, **environ)
    if chosen.verbose:
        sys.stdout.write(done.stdout)
    return done.stdout


def count(output: str) -> tuple[int, int]:
    """How many tests have run, and how many of them have failed."""
    if ran := re.search(r"^Ran (\d+) tests", output, re.MULTILINE):
        kinds = r"(?:failures|errors|unexpected successes)=(\d+)"
        return int(ran[1]), sum(map(int, re.findall(kinds, output)))
    found = re.findall(r"(\d+) (\w+)", last_line(output))
    parts = {kind: int(number) for number, kind in found}
    failed = parts.get("failed", 0) + parts.get("error", 0) + parts.get("errors", 0)
    if "passed" not in parts:
        raise RuntimeError(last_line(output))
    return parts["passed"] + failed, failed


def try_out(project: Project) -> list[str]:
    """The rows of the project in the table."""
    with tempfile.TemporaryDirectory(prefix="abs_orm_app-projects-") as directory:
        source = project.find(Path(directory))
        with environment(project.packages(source)) as python:
            total, cells = 0, []
            for mode in MODES:
                with DebianServer() as server:
                    output = _run(
                        python, project.command, source, mode, project.settings,
                        DATABASE_URL=server.url,
                    )  # fmt: skip
                total, failed = count(output)
                print(f"{project.name}, {mode}: {failed} of {total} tests failed", flush=True)
                cells.append(f"{failed}")
            rows = [f"| {project.name}: failed of {total} tests | {' | '.join(cells)} |\n"]
            for web in WEB if project.serves else ():
                cells = []
                for mode in MODES:
                    arguments = [INSIDE, "serve", web]
                    output = _run(python, arguments, source, mode, project.settings)
                    served = json.loads(last_line(output))
                    cells.append("{failed} of {requests}".format(**served))
                    print(f"{project.name}, {web}, {mode}: {cells[-1]} failed", flush=True)
                rows.append(f"| {project.name}, {web}: failed requests | {' | '.join(cells)} |\n")
            return rows


def main() -> int:
    rows = [row for name in chosen.names or PROJECTS for row in try_out(PROJECTS[name])]
    if not chosen.names:
        head = f"| | {' | '.join(MODES)} |\n|---|{'---|' * len(MODES)}\n"
        PAGE.write_text(TABLE.sub(lambda _: head + "".join(rows), PAGE.read_text()))
    return 0


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROJECTS))
parser.add_argument("--healthchecks", metavar="DIR", help="its source, if it cannot be fetched")
parser.add_argument("--verbose", action="store_true", help="print what the tests print")
chosen = parser.parse_args()

if __name__ == "__main__":
    sys.exit(main())
