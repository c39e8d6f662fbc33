"""docs/checks.md has an entry for each rule, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from abs_orm_app.checks import finding
from tests.support.projects import ROOT


def test_each_id_is_documented_and_each_documented_id_exists() -> None:
    files = Path(finding.__file__).parent.glob("*_rules.py")
    source = "".join(file.read_text() for file in files)
    page = (ROOT / "docs" / "checks.md").read_text()
    in_code = set(re.findall(r'"([EWI]\d{3})"', source))
    assert sorted(re.findall(r'<a id="([EWI]\d{3})"></a>', page)) == sorted(in_code)
    assert set(re.findall(r"^### .*\b([EWI]\d{3})\b", page, re.MULTILINE)) == in_code
    [removed] = re.findall(r"never used again: ([^.]+)\.", page)
    assert not in_code & set(re.findall(r"[EWI]\d{3}", removed))
