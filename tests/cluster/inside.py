"""Runs the cases one after the other; only inside of the namespaces that `__main__` makes."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from time import monotonic

from abs_orm_app.embedded.wheel import programs
from tests.cluster import table
from tests.cluster.cases import CASES, Outcome, run
from tests.cluster.nodes import Cluster
from tests.cluster.packages import PATH


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    began = monotonic()
    cluster = Cluster(chosen.home, chosen.python)
    cluster.start()
    print(f"{monotonic() - began:5.0f} s  the cluster is up", flush=True)
    outcomes = []
    for name in chosen.cases or CASES:
        directory = chosen.home / "logs" / name
        directory.mkdir()
        outcomes.append(run(cluster, CASES[name], directory))
        report(outcomes[-1], monotonic() - began)
    print(f"\n{table.table(outcomes)}")
    failed = any(outcome.faults for outcome in outcomes)
    if chosen.write and failed:
        print("The table is not written, because a case failed.")
    elif chosen.write:
        table.write(outcomes, versions(chosen.python))
    return failed


def report(outcome: Outcome, seconds: float) -> None:
    verdict = "; ".join(outcome.faults)
    verdict = f"FAILED: {verdict}" if verdict else "good"
    print(f"{seconds:5.0f} s  {outcome.case.title} ({outcome.case.path}): {verdict}")
    print(f"         {table.row(outcome)}", end="")
    for error, count in outcome.errors:
        print(f"         {count} x {error}")
    sys.stdout.flush()


def versions(python: Path) -> str:
    commands: dict[str, list[str | Path]] = {
        "Patroni": [python, "-m", "patroni", "--version"],
        "PostgreSQL": [programs().bin / "postgres", "--version"],
        "HAProxy": ["haproxy", "-v"],
        "etcd": ["etcd", "--version"],
    }
    found = []
    for name, command in commands.items():
        done = subprocess.run(
            command, env={"PATH": PATH}, capture_output=True, text=True, timeout=30, check=True
        )
        number = re.search(r"\d+\.\d+", done.stdout + done.stderr)
        assert number, done.stdout
        found.append(f"{name} {number[0]}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main())
