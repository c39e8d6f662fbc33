"""`make demo`: a page that one can log in to, under load, and nothing left at its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from abs_project.demo import PAGE
from tests.support.login import page_for
from tests.support.servers import wait_until

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
IN_TIME = 60.0  # seconds, on a busy machine


@contextmanager
def demo(temporary: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    environ = {
        "PATH": os.defpath,
        "TMPDIR": str(temporary),
        "DATABASE_URL": "postgresql://app@192.0.2.1/production",  # which it must not touch
        "DJANGO_SETTINGS_MODULE": "nowhere.settings",
    }
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "abs_project.demo", *options],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(IN_TIME)


def said(process: subprocess.Popen[str], last: str) -> str:
    """What the demo prints up to a line that contains `last`."""
    assert process.stdout
    lines = ""
    for line in process.stdout:
        lines += line
        if last in line:
            return lines
    raise AssertionError(f"it ended: {lines}")


def word(name: str, text: str) -> str:
    found = re.search(rf"^ +{name} +(\S+)$", text, re.MULTILINE)
    assert found, text
    return found[1]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where PostgreSQL's account may enter; its path is as short as that of /tmp mostly is."""
    with tempfile.TemporaryDirectory(prefix="abs-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def test_it_prints_where_the_page_is_and_who_may_log_in_and_leaves_nothing(temporary: Path) -> None:
    with demo(temporary, "--port", "0") as process:
        lines = said(process, "Ctrl-C")
        address, user, password = (word(name, lines) for name in ("page", "user", "password"))
        assert address.endswith(PAGE)
        assert len(password) >= 12
        html = ""

        def is_under_load() -> bool:
            nonlocal html
            html = page_for(address, user, password)
            rows = re.findall(r'<tr id="process-', html)
            return len(rows) == 2 and "GET /slow/" in html

        wait_until(is_under_load, "both processes and what holds connections", IN_TIME)
        process.send_signal(signal.SIGINT)
        assert process.wait(IN_TIME) == 0
    assert list(temporary.iterdir()) == []


def test_it_ends_by_itself(temporary: Path) -> None:
    began = time.monotonic()
    with demo(temporary, "--port", "0", "--minutes", "0.02") as process:
        assert process.wait(IN_TIME) == 0
    assert time.monotonic() - began < IN_TIME
    assert list(temporary.iterdir()) == []
