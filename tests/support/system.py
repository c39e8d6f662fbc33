"""What a test needs from the system, and the package to install where that is missing.

    pytestmark = needs("git", found=shutil.which("git"))

Without it the test is skipped, and says so. CI installs all of it: there the test runs, and fails.
`pytest -m needs` runs what a bare machine skips.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest

IN_CI = os.environ.get("CI") == "true"


def needs(packages: str, *, found: object) -> pytest.MarkDecorator:
    """Mark a test that needs something of these packages of Debian; was it found?"""
    return pytest.mark.needs(packages, found=bool(found))


def missing(test: pytest.Item) -> list[str]:
    """The packages that a test needs, and that were not found."""
    marks = test.iter_markers("needs")
    return [] if IN_CI else [mark.args[0] for mark in marks if not mark.kwargs["found"]]


needs_gevent = pytest.mark.skipif(
    find_spec("gevent") is None, reason="gevent has no release for a Python without the GIL"
)
needs_git = needs("git", found=shutil.which("git"))
needs_make = needs("make", found=shutil.which("make"))
needs_openssl = needs("openssl", found=shutil.which("openssl"))
needs_promtool = needs("prometheus", found=shutil.which("promtool"))
