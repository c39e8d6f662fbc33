"""The page shows the processes of one test."""

from __future__ import annotations

from pathlib import Path

import pytest

from abs_orm_app.integrations.admin_page import neighbours


@pytest.fixture(autouse=True)
def no_process_of_another_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "gettempdir", lambda: str(tmp_path))
