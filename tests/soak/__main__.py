"""Each soak after the other, so many seconds each: every mode, with threads and with greenlets.

    python -m tests.soak --seconds 600

It ends with an error if one has seen what must not happen.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

from tests.support.databases import MODES
from tests.support.processes import ROOT
from tests.support.sessions import EVERY_MODE

END = 300.0  # seconds, at most, from the end of the faults to the end of the process
GREENLETS = 0.2  # of the time that each of the others takes
INTERRUPTED = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--mode", choices=EVERY_MODE, nargs="+", default=EVERY_MODE)
    options: Any = parser.parse_args()
    failed = 0
    for mode in options.mode:
        failed += _run("chaos", mode, options.seconds)
        failed += _run("interrupted", mode, options.seconds * INTERRUPTED)
        if mode in MODES:
            failed += _run("gevented", mode, options.seconds * GREENLETS)
    sys.exit(bool(failed))


def _run(script: str, mode: str, seconds: float) -> bool:
    sys.stdout.write(f"{script}, {mode}, {seconds:.0f} s\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", f"tests.soak.{script}", f"--mode={mode}"]
    try:
        done = subprocess.run(
            [*command, f"--seconds={seconds}"], check=False, cwd=ROOT, timeout=seconds + END
        )
    except subprocess.TimeoutExpired:
        sys.stdout.write("It did not end.\n")
        return True
    return done.returncode != 0


if __name__ == "__main__":
    main()
