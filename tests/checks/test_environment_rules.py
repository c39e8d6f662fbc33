"""The rules on the environment."""

from __future__ import annotations

import pytest

from abs_orm_app.checks.settings_rules import unknown_variables
from abs_orm_app.environment import SettingsError, database_from_env
from tests.support.aliases import ids


def test_an_unknown_variable_is_a_warning_with_a_suggestion() -> None:
    found = unknown_variables({"DB_POOL_SISE": "DB_POOL_SIZE", "DB_POOL_X": None})
    assert ids(found) == ["W001", "W001"]
    assert "DB_POOL_SISE; did you mean DB_POOL_SIZE?" in found[0].message


def test_a_name_that_would_command_a_terminal_is_harmless() -> None:
    (found,) = unknown_variables({"DB_POOL_SIZ\x1b[2J": "DB_POOL_SIZE"})
    assert "DB_POOL_SIZ [2J; did you mean" in found.message
    with pytest.raises(SettingsError) as error:
        database_from_env(environ={"DB_USER": "app", "DB_NAM\x1bE": "shop"})
    assert "DB_NAM E is set: did you mean DB_NAME?" in str(error.value)
