"""The rules on the environment."""

from __future__ import annotations

from abs_orm_app.checks import environment_rules
from tests.support.aliases import ids


def test_an_unknown_variable_is_a_warning_with_a_suggestion() -> None:
    found = environment_rules.unknown_variables({"DB_POOL_SISE": "DB_POOL_SIZE", "DB_POOL_X": None})
    assert ids(found) == ["W001", "W001"]
    assert "DB_POOL_SISE; did you mean DB_POOL_SIZE?" in found[0].message
