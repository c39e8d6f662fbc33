"""Break a Patroni cluster in each way, and compare the pool with fresh connections.

    python -m tests.cluster                      # all cases, about five minutes
    python -m tests.cluster isolation            # only these
    python -m tests.cluster --write              # all, and write the table into docs/failover.md

It runs in a network, a process and an IPC namespace of its own, which end with it: no process, no
port and no shared memory is left behind, however it ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from tests.cluster.cases import CASES
from tests.cluster.packages import refusal, with_patroni
from tests.support.readme import ROOT
from tests.support.servers import PREFIX, scratch

MOST = 1200.0  # seconds for all cases; each wait in them has a bound of its own
END = 10.0  # seconds that the kernel may take to end a namespace
# Killed with this process, and all processes of the namespace with its first one. That one is a
# shell, because it reaps orphans.
NAMESPACE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--net", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child"),
    *("sh", "-c", '"$@"; exit $?', "sh"),
)


@contextmanager
def directory() -> Iterator[Path]:
    """A directory that every account can enter; see `servers` for who removes it after a crash."""
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=scratch()))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def namespace(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in its own namespaces; none of their processes outlives the block."""
    # In a session of its own, so that Ctrl-C ends this process first, which then ends the others.
    process = subprocess.Popen([*NAMESPACE, *command], cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(END)
        psutil.wait_procs(family, END)


def main() -> int:
    chosen = arguments()
    if why := refusal():
        return skipped(why)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with ExitStack() as stack:
        home = stack.enter_context(directory())
        try:
            patroni = with_patroni(home)
        except RuntimeError as error:
            return skipped(f"Patroni cannot be installed: {error}")
        inside = [sys.executable, "-m", "tests.cluster.inside", str(home), str(patroni)]
        write = ["--write"] if chosen.write else []
        process = stack.enter_context(namespace([*inside, *write, *chosen.cases]))
        try:
            return process.wait(MOST)
        finally:
            if chosen.logs:
                shutil.copytree(home / "logs", chosen.logs, dirs_exist_ok=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs in this directory")
    chosen = parser.parse_args()
    if unknown := set(chosen.cases) - CASES.keys():
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if chosen.write and chosen.cases:
        parser.error("--write needs all cases")
    return chosen


def skipped(why: str) -> bool:
    """Say why nothing runs, which is a failure in a CI."""
    print(f"skipped: {why}")
    return os.environ.get("CI") == "true"


if __name__ == "__main__":
    sys.exit(main())
