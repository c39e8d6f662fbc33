"""Try each package in an environment of its own, in both modes of DB_POOL_RELEASE, and write
docs/embedding.md's table.

python -m tests.compat             # all, and write
python -m tests.compat dbbackup    # only these, and print
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import django

from abs_orm_app.config.entry import Release
from tests.compat.case import POOL, Case
from tests.compat.project import case

from tests.support.debian import DebianServer
from tests.support.readme import ROOT, ended
from tests.support.servers import Server

CASES = ROOT / "tests" / "compat" / "cases"
PAGE = ROOT / "docs" / "embedding.md"
INSTALL = 240.0  # seconds
CHECK = 100.0
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)
HEAD = "| package | what to do |\n|---|---|\n"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a case."""

    case: Case
    version: str  # of the package
    failure: str = ""  # what went wrong; "" for nothing
    seconds: float = 0.0


def names() -> list[str]:
    stems = sorted(path.stem for path in CASES.glob("*.py") if path.stem != "__init__")
    return [stem for stem in stems if case(stem).django <= django.VERSION]


@contextmanager
def environment(packages: Sequence[str]) -> Iterator[Path]:
    """An interpreter that has these packages, and all that the suite's own environment has."""
    with tempfile.TemporaryDirectory(prefix="abs_orm_app-compat-") as directory:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        python = Path(directory, "bin", "python")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        base = Path(directory, "lib", version, "site-packages", "suite.pth")
        base.write_text(f"{sysconfig.get_path('purelib')}\n")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
        installed = subprocess.run(
            [
                *pip,
                "install",
                "--quiet",
                "--no-compile",
                f"django=={django.__version__}",
                *packages,
            ],
            capture_output=True,
            text=True,
            timeout=INSTALL,
            check=False,
        )
        if installed.returncode:
            raise RuntimeError(last_line(installed.stderr))
        yield python


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


@contextmanager
def server_for(tried: Case) -> Iterator[Server]:
    """A server that has the extensions which the package creates."""
    if tried.contrib:
        with DebianServer() as server:
            yield server
    elif name := tried.empty_extension:
        with tempfile.TemporaryDirectory() as directory:
            Path(directory).chmod(0o755)
            extension = Path(directory, "extension")
            extension.mkdir()
            (extension / f"{name}.control").write_text("default_version = '1'\n")
            (extension / f"{name}--1.sql").write_text("")
            with Server({"extension_control_path": f"$system:{directory}"}) as server:
                yield server
    else:
        with Server() as server:
            yield server


def attempt(python: Path, name: str, **environ: str) -> str:
    """Run the case on a server of its own; return what went wrong, "" for nothing."""
    tried = case(name)
    with server_for(tried) as server:
        path = f"{server.programs_dir}:{os.environ['PATH']}"
        settings = {"DATABASE_URL": server.url, "PATH": path, **POOL, **tried.variables, **environ}
        try:
            command = [str(python), "-m", "tests.compat.project", name]
            done = ended(command, ROOT, CHECK, **settings)
        except subprocess.TimeoutExpired as error:
            if "--verbose" in sys.argv:
                sys.stdout.write((error.stdout or b"").decode())
            return f"did not end in {CHECK:.0f} s"
        if "--verbose" in sys.argv:
            sys.stdout.write(done.stdout)
        return last_line(done.stdout) if done.returncode else ""


def version_of(python: Path, package: str) -> str:
    name = re.split(r"[\[<>=~!]", package)[0]
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return f"{name} " + subprocess.check_output([python, "-c", code], text=True).strip()


def try_out(name: str) -> Tried:
    found, began = case(name), time.monotonic()
    try:
        with environment(found.packages) as python:
            version = version_of(python, found.packages[0])
            for mode in get_args(Release):
                if failure := attempt(python, name, DB_POOL_RELEASE=mode):
                    failure += f" ({mode})"
                    break
            if not failure and found.lines and not attempt(python, name, COMPAT_BARE="1"):
                failure = "it works without the lines, too: take them out of the case"
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        version, failure = found.packages[0], f"cannot be installed: {error}"
    return Tried(case=found, version=version, failure=failure, seconds=time.monotonic() - began)


def row(tried: Tried) -> str:
    lines = "<br>".join(f"`{line}`" for line in source_lines(tried.case.lines))
    failure = f"**does not work**: {tried.failure}" if tried.failure else ""
    note = " ".join(part for part in (lines, failure, tried.case.note) if part)
    return f"| {tried.version} | {note} |\n" if note else ""


def source_lines(text: str) -> list[str]:
    """Each statement on a line of its own, as a table needs it."""
    return [ast.unparse(statement) for statement in ast.parse(text).body]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names()))
    parser.add_argument("--verbose", action="store_true", help="print what the checks print")
    chosen = parser.parse_args()
    results = []
    for name in chosen.names or names():
        if sys.version_info < case(name).python:
            print(f"not tried: {name} needs Python {'.'.join(map(str, case(name).python))}")
            continue
        tried = try_out(name)
        verdict = f"FAILED: {tried.failure}" if tried.failure else f"works: {tried.case.tried}"
        print(f"{tried.seconds:5.0f} s  {tried.version}: {verdict}", flush=True)
        results.append(tried)
    if not chosen.names:
        easy = ", ".join(sorted(tried.version for tried in results if not row(tried)))
        table = f"Nothing to do: {easy}.\n\n{HEAD}" + "".join(sorted(map(row, results)))
        PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text()))
    return any(tried.failure for tried in results)


if __name__ == "__main__":
    sys.exit(main())
