"""A short soak; `make soak` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.processes import ROOT
from tests.support.sessions import EVERY_MODE

SHORT = 8  # seconds
END = 240  # seconds, at most


@pytest.mark.timeout(2 * END)
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_a_few_seconds_of_chaos(mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak.chaos", f"--seconds={SHORT}", f"--mode={mode}"],
        check=False, capture_output=True, cwd=ROOT, text=True, timeout=END,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert json.loads(done.stdout)["done"]["rows acknowledged"] > 100
