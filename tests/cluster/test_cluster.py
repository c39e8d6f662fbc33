"""What `make cluster` concludes, and that it leaves no process behind; without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster import table
from tests.cluster.__main__ import namespace
from tests.cluster.cases import CASES, Outcome, first
from tests.cluster.load import Write
from tests.cluster.packages import refusal
from tests.support.processes import ROOT
from tests.support.servers import wait_until

CANNOT = refusal()
needs_namespaces = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)


def outcome(case: str = "kill", **changes: Any) -> Outcome:
    good: dict[str, Any] = {"primary": 20.0, "fresh": 20.1, "pool": 21.0, "interrupted": 3}
    return Outcome(
        case=CASES[case], **(good | {"failed": 0, "failed_reads": 0, "lost": 0} | changes)
    )


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (outcome(), None),
        (outcome(pool=22.2), "later than a fresh connection"),
        (outcome(pool=None), "later than a fresh connection"),
        (outcome(fresh=None), "no fresh connection"),
        (outcome(lost=1), "1 acknowledged rows are lost"),
        (outcome(failed=4), None),
        (outcome("switchover", failed=40), None),
        (outcome("switchover-read-write", failed=1), "1 writes failed"),
        (outcome("switchover-read-write", interrupted=1), None),
    ],
)
def test_a_case_fails_for_one_of_three_reasons(found: Outcome, fault: str | None) -> None:
    if fault is None:
        assert found.faults == []
    else:
        assert len(found.faults) == 1
        assert fault in found.faults[0]


def test_the_first_write_is_the_first_on_a_later_timeline() -> None:
    writes = [
        Write("", 0, 1, 1),
        Write("", 1, 2, 0, "lost"),
        Write("", 1, 4, 2),
        Write("", 1, 3, 2),
    ]
    assert first(writes, 1) == 3
    assert first(writes, 2) is None


def test_the_table_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cluster -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    table.write([outcome(pool=None)], "Patroni 4.1")
    text = page.read_text()
    assert text.startswith("before\n<!-- cluster -->\nPatroni 4.1;")
    assert text.endswith("| 20.0 s | 20.1 s | never | 3 | 0 | 0 |\n<!-- end -->\nafter\n")
    assert "old" not in text


def test_the_page_has_a_place_for_the_table() -> None:
    assert table.MARKED.search((ROOT / "docs" / "failover.md").read_text())


@needs_namespaces
def test_no_process_of_the_namespace_is_left_behind(tmp_path: Path) -> None:
    """A daemon in a session of its own outlives Ctrl-C and the end of its parent."""
    started = tmp_path / "started"
    script = f"setsid sleep 1000 & setsid sleep 1000 & touch {started}; wait"
    with namespace(["sh", "-c", script]) as process:
        wait_until(started.exists, "the namespace")

        def sleepers() -> list[psutil.Process]:
            children = psutil.Process(process.pid).children(recursive=True)
            return [each for each in children if each.name() == "sleep"]

        wait_until(lambda: len(sleepers()) == 2, "both to begin")
        processes = psutil.Process(process.pid).children(recursive=True)
    assert not any(each.is_running() for each in processes)
