"""Without psycopg_pool, the commands say what to install, and end without a traceback."""

from __future__ import annotations

import pytest

from tests.support.projects import python

# A process in which the package is not there.
CODE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "psycopg_pool":
            raise ModuleNotFoundError("No module named 'psycopg_pool'", name="psycopg_pool")
sys.meta_path.insert(0, Missing())
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""


@pytest.mark.parametrize("command", ["check", "check_pool"])
def test_a_missing_psycopg_pool_is_e003_and_no_traceback(command: str) -> None:
    done = python(
        *("-c", CODE, command),
        DJANGO_SETTINGS_MODULE="abs_project.settings",
        DATABASE_URL="postgresql://app@127.0.0.1:1/shop",
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" not in printed
    assert "E003" in printed
    assert printed.count("'psycopg[binary,pool]'") == 1
