"""What `check_pool` prints if the settings cannot be read: Django then never starts the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

SCHEMA = 1  # of check_pool's JSON; raised when a key is renamed or removed, not when one is added
SUMMARY = "FAILED: the settings cannot be used."


def verdict_on(error: BaseException, argv: Sequence[str]) -> str:
    """The verdict for standard output, as text or JSON; "" if `argv` is another command."""
    if list(argv[1:2]) != ["check_pool"]:
        return ""
    if not _asks_for_json(argv):
        return f"{SUMMARY}\n"
    document = {
        "schema": SCHEMA,
        "ok": False,
        "exit_code": 1,
        "summary": SUMMARY,
        "error": str(error),
    }
    return f"{json.dumps(document, indent=2)}\n"


def _asks_for_json(argv: Sequence[str]) -> bool:
    return "--format=json" in argv or ("--format", "json") in pairwise(argv)
