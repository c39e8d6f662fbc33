"""The age of a connection counts the time that the machine was suspended.

No test can suspend a machine. In a time namespace, the clock that counts a suspend is far from the
one that does not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from tests.support.pools import opened, ours
from tests.support.processes import ROOT
from tests.support.servers import Server

SUSPENDED = 1_000_000  # seconds
UNSHARE = ("unshare", "--time", "--boottime", str(SUSPENDED))


def refusal() -> str:
    """Why there can be no such namespace here, or "" if there can."""
    if not shutil.which("unshare"):
        return "no command `unshare`: apt install util-linux"
    done = subprocess.run([*UNSHARE, "true"], check=False, capture_output=True, text=True)
    return done.stderr.strip()


@pytest.mark.skipif("refusal()", reason="no time namespaces here")
def test_ages_are_of_the_clock_that_counts_a_suspend(shared: Server) -> None:
    command = [*UNSHARE, sys.executable, "-m", __name__, shared.conninfo]
    done = subprocess.run(
        command, check=False, capture_output=True, cwd=ROOT, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    boot, monotonic, opened_at, idle_since, ends = map(float, done.stdout.split())
    assert boot - monotonic > SUSPENDED / 2
    assert boot - 60 < opened_at <= boot
    assert boot - 60 < idle_since <= boot
    assert boot < ends, "it is recycled by the same clock"


def _print_ages(conninfo: str) -> None:
    with opened(ours, conninfo, min_size=1, max_lifetime=3600) as pool:
        pool.putconn(pool.getconn())
        (entry,) = pool.entries
        ages = (entry.opened_at, entry.idle_since, entry.expires_at)
        sys.stdout.write(
            f"{time.clock_gettime(time.CLOCK_BOOTTIME)} {time.monotonic()} {ages[0]} {ages[1]}"
            f" {ages[2]}\n"
        )


if __name__ == "__main__":
    _print_ages(sys.argv[1])
