"""How long the commands take: `python -m benchmarks.commands [ROUNDS]`.

Each run is a process of its own, and the variants take turns: the medians of the rounds are shown,
and of the differences within a round. The server is the benchmark's own; like the embedded one, it
is a PostgreSQL on a local socket that is running already.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from time import perf_counter

from tests.support.servers import Server

Times = Mapping[str, Sequence[float]]

ROUNDS = 20
ROOT = Path(__file__).parent.parent
DEADLINE = 120.0  # seconds, for a command
CHECK_POOL_TO_REACH = 1500.0  # ms, in all
CHECK_TO_REACH = 30.0  # ms more than without the app

# What the variants of `check` have in common: a usual project, its DATABASES written by hand.
PROJECT = """
DEBUG = True
SECRET_KEY = "x" * 60
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
STATIC_URL = "static/"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "OPTIONS": {"pool": {"min_size": 20, "max_size": 30}},
    },
}
"""
APP = 'INSTALLED_APPS.append("abs_orm_app")\n'
OURS = """
from abs_orm_app.environment import database_from_env
DATABASES = {"default": database_from_env()}
"""

BARE, WITH_APP, WHOLE, CHECK_POOL = (
    "check, without the app",
    "check, the app added",
    "check, the app, its engine and its settings",
    "check_pool",
)
COMMANDS = {
    BARE: ("bare", "check"),
    WITH_APP: ("with_app", "check"),
    WHOLE: ("whole", "check"),
    CHECK_POOL: ("whole", "check_pool"),
}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    wall, cpu = measure(rounds)
    print(f"Medians of {rounds} rounds, in ms.\n")
    print("| command | wall | CPU | CPU more than the first | ratio |\n|---|---|---|---|---|")
    for name in COMMANDS:
        more = _more(cpu[name], cpu[BARE])
        base = statistics.median(cpu[BARE])
        times = f"{statistics.median(wall[name]):.0f} | {statistics.median(cpu[name]):.0f}"
        print(f"| {name} | {times} | {more:.0f} | {1 + more / base:.2f} |")
    added, total = _more(cpu[WITH_APP], cpu[BARE]), statistics.median(wall[CHECK_POOL])
    print(f"\nThe app adds {added:.0f} ms to check: {_verdict(added, CHECK_TO_REACH)}.")
    print(f"check_pool takes {total:.0f} ms in all: {_verdict(total, CHECK_POOL_TO_REACH)}.")


def _more(times: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(a - b for a, b in zip(times, base, strict=True))


def _verdict(value: float, most: float) -> str:
    return f"{value / most:.2f} of the {most:.0f} ms to stay below"


def measure(rounds: int) -> tuple[Times, Times]:
    """Wall-clock and CPU time of each command in each round, in ms."""
    wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as directory, Server() as server:
        (Path(directory) / "bare.py").write_text(PROJECT)
        (Path(directory) / "with_app.py").write_text(PROJECT + APP)
        (Path(directory) / "whole.py").write_text(PROJECT + APP + OURS)
        for turn in range(rounds + 1):
            for name, (settings, command) in COMMANDS.items():
                took = run(command, settings, directory, server.url)
                if turn:  # the first one writes the bytecode
                    wall[name].append(took[0])
                    cpu[name].append(took[1])
    return wall, cpu


def run(command: str, settings: str, path: str, url: str) -> tuple[float, float]:
    """Wall-clock and CPU time of one command, in ms."""
    environ = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": settings,
        "PYTHONPATH": path,
        "DATABASE_URL": url,
    }
    cpu_before, began = _cpu(), perf_counter()
    subprocess.run(
        [sys.executable, "manage.py", command],
        cwd=ROOT,
        env=environ,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=DEADLINE,
    )
    return (perf_counter() - began) * 1000.0, (_cpu() - cpu_before) * 1000.0


def _cpu() -> float:
    usage = getrusage(RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
