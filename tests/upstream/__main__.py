"""Run Django's own tests on the engine with its pool, once in each mode of DB_POOL_RELEASE.

python -m tests.upstream                        # those of APPS
python -m tests.upstream backends transactions  # only these

The tests come with Django's source release, which pip downloads into build/ once, in the version
that is installed here. Exits with 1 if a test fails that is not in `LOOK_INSIDE`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import django

from tests.support.databases import MODES
from tests.support.debian import FOUND as DEBIANS
from tests.support.debian import DebianServer
from tests.support.readme import ROOT, ended
from tests.support.servers import Server

# What a database engine, its connections and its transactions take part in.
APPS = (
    "aggregation", "annotations", "async", "backends", "basic", "bulk_create", "constraints",
    "custom_pk", "datatypes", "delete", "expressions", "expressions_case", "fixtures",
    "get_or_create", "handlers", "introspection", "lookup", "many_to_many", "multiple_database",
    "prefetch_related", "queries", "raw_query", "save_delete_hooks", "select_for_update",
    "servers", "test_client", "test_runner", "test_utils", "timezones",
    "transaction_hooks", "transactions", "update",
)  # fmt: skip
# The same; they need collations of ICU, which Debian's PostgreSQL has and the wheel has not.
COLLATING = ("db_functions", "inspectdb", "migrations", "model_fields", "schema")

# Tests that look into what another class does: no project can tell the difference.
LOOK_INSIDE = {
    "test_pooling_health_checks": "reads psycopg_pool's private `_check`",
    "test_pool_check_can_be_overridden": "the same, in Django 6.1",
    "test_ignores_connection_configuration_queries": "patches a method of Django's base class",
    "test_is_usable_after_database_disconnects": "closes the handle, and none is held between two"
    " queries in `transaction` mode",
}

SECONDS = 1200  # for all tests in one mode
SETTINGS = """
from test_sqlite import *  # Django's own, for everything but the database

DATABASES = {{
    alias: {{
        "ENGINE": "abs_orm_app.backends.postgresql",
        "NAME": name,
        "USER": "postgres",
        "HOST": {host!r},
        "PORT": {port!r},
        "OPTIONS": {{"pool": {{"min_size": 1, "max_size": 10, "timeout": 20}}}},
        "ABS_ORM_APP": {{"release": {release!r}}},
    }}
    for alias, name in (("default", "one"), ("other", "two"))
}}
"""
FAILED = re.compile(r"^(?:FAIL|ERROR): (\w+) \(([\w.]+)\)", re.MULTILINE)
RAN = re.compile(r"^Ran (\d+) tests? in", re.MULTILINE)
SKIPPED = re.compile(r"skipped=(\d+)")


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    ran: int
    skipped: int
    failed: frozenset[str]  # dotted names
    output: str

    @property
    def unexpected(self) -> list[str]:
        return sorted(n for n in self.failed if n.rpartition(".")[2] not in LOOK_INSIDE)


def sources() -> Path:
    """The directory of Django's tests, downloaded if it is not there yet."""
    build = ROOT / "build"
    release = f"django-{django.__version__}"
    directory = build / release / "tests"
    if not directory.is_dir():
        build.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
        pip += [
            "--no-deps",
            "--no-binary=:all:",
            f"--dest={build}",
            f"django=={django.__version__}",
        ]
        subprocess.run(pip, check=True)
        with tarfile.open(build / f"{release}.tar.gz") as archive:
            archive.extractall(build, filter="data")
    return directory


def run(directory: Path, server: Server, release: str, labels: list[str]) -> Outcome:
    """Run the tests on databases of their own, which are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="abs_orm_app-upstream-") as home:
        text = SETTINGS.format(host=str(server.socket_dir), port=str(server.port), release=release)
        Path(home, "settings_of_the_engine.py").write_text(text)
        command = [sys.executable, "runtests.py", "--settings=settings_of_the_engine"]
        command += ["--parallel=1", "--noinput", *labels]
        done = ended(command, directory, SECONDS, PYTHONPATH=os.pathsep.join([home, str(ROOT)]))
    ran, skipped = RAN.search(done.stdout), SKIPPED.search(done.stdout)
    return Outcome(
        ran=int(ran[1]) if ran else 0,
        skipped=int(skipped[1]) if skipped else 0,
        failed=frozenset(
            f"{where}" if where.endswith(name) else f"{where}.{name}"
            for name, where in FAILED.findall(done.stdout)
        ),
        output=done.stdout,
    )


def write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("labels", nargs="*", help="of Django's tests")
    labels = parser.parse_args().labels or [*APPS, *(COLLATING if DEBIANS else ())]
    directory = sources()
    passed = True
    for release in MODES:
        began = monotonic()
        with (DebianServer if DEBIANS else Server)({"max_connections": "50"}) as server:
            outcome = run(directory, server, release, labels)
        ended = outcome.ran > 0
        passed = passed and ended and not outcome.unexpected
        if not ended or outcome.unexpected:
            sys.stderr.write(outcome.output)
        write(
            f"Django {django.__version__}, {release} mode: {outcome.ran} tests in"
            f" {monotonic() - began:.0f} s, {outcome.skipped} skipped, {len(outcome.failed)} failed"
        )
        for name in sorted(outcome.failed):
            why = LOOK_INSIDE.get(name.rpartition(".")[2])
            write(f"    {name}: {'expected, ' + why if why else 'NOT EXPECTED'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
