"""Where variables come from: the environment, a .env file, a file for a secret."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from abs_orm_app.config.variables import read_secret_file
from abs_orm_app.environment import SettingsError, database_from_env, read_env_file
from tests.support.projects import ROOT, python

ADDRESS = {"DATABASE_URL": "postgresql://app@db.example/app"}


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment of the test's own, as os.environ."""
    own = dict(ADDRESS)
    monkeypatch.setattr(os, "environ", own)
    monkeypatch.setattr("abs_orm_app.config.variables._from_env_file", {})
    return own


def env_file(directory: Path, text: str) -> Path:
    path = directory / ".env"
    path.write_text(text)
    return path


def test_an_env_file_sets_what_the_environment_does_not(tmp_path: Path) -> None:
    os.environ["DB_POOL_SIZE"] = "7"
    read_env_file(
        env_file(tmp_path, "# sizes\nDB_POOL_SIZE=5\n\nexport DB_MAX_OVERFLOW=3\nDB_PASSWORD='a#b'")
    )
    entry = database_from_env()
    assert entry["OPTIONS"]["pool"]["min_size"] == 7
    assert entry["OPTIONS"]["pool"]["max_size"] == 10
    assert entry["PASSWORD"] == "a#b"
    sources = entry["ABS_ORM_APP"]["sources"]
    assert sources["DB_POOL_SIZE"] == "environment"
    assert sources["DB_MAX_OVERFLOW"] == sources["DB_PASSWORD"] == ".env"
    assert sources["DB_POOL_TIMEOUT"] == "default"


def test_what_a_child_process_inherits_from_the_file_still_comes_from_the_file(
    tmp_path: Path,
) -> None:
    os.environ["DB_POOL_SIZE"] = "5"
    read_env_file(env_file(tmp_path, "DB_POOL_SIZE=5"))
    assert database_from_env()["ABS_ORM_APP"]["sources"]["DB_POOL_SIZE"] == ".env"


def test_a_missing_env_file_is_no_error(tmp_path: Path) -> None:
    before = dict(os.environ)
    read_env_file(tmp_path / ".env")
    assert os.environ == before


MIGRATING = (ROOT / "docs" / "migrating.md").read_text()
AFTER = re.findall(r"^```\n((?:# .*\n|[A-Z_]+=.*\n)+)```", MIGRATING, re.MULTILINE)


@pytest.mark.parametrize("lines", AFTER, ids=range(len(AFTER)))
def test_the_lines_of_the_migration_guide_work_in_an_env_file(tmp_path: Path, lines: str) -> None:
    os.environ.clear()
    read_env_file(env_file(tmp_path, lines))
    database_from_env(default=ADDRESS["DATABASE_URL"])


@pytest.mark.parametrize("line", ["DB_PASSWORD = s3cret", "DB-PASSWORD=s3cret", "s3cret"])
def test_a_line_of_an_env_file_that_sets_nothing_is_refused_and_not_shown(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = env_file(tmp_path, f"DEBUG=true\n{line}\n")
    with pytest.raises(SettingsError, match=r"\.env, line 2, is not NAME=value") as error:
        read_env_file(path)
    assert "s3cret" not in str(error.value) + caplog.text
    assert "DEBUG" not in os.environ


def test_a_line_with_a_nul_byte_is_refused(tmp_path: Path) -> None:
    path = env_file(tmp_path, "DEBUG=true\n# \0\nDB_PASSWORD=s3cret\0\n")
    with pytest.raises(SettingsError, match=r"\.env, line 3, holds a NUL byte\.$"):
        read_env_file(path)


def test_an_env_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_env_file(tmp_path)
    (tmp_path / ".env").write_bytes(b"A=\xff")
    with pytest.raises(SettingsError, match="cannot be read: it is not UTF-8 text"):
        read_env_file(tmp_path / ".env")


def test_a_variable_may_name_another_env_file_which_must_exist(tmp_path: Path) -> None:
    path = env_file(tmp_path, "DB_POOL_SIZE=5")
    read_env_file(tmp_path / "missing", variable="ENV_FILE")
    os.environ["ENV_FILE"] = str(path)
    read_env_file(tmp_path / "missing", variable="ENV_FILE")
    assert os.environ["DB_POOL_SIZE"] == "5"
    for named, reason in [
        (str(tmp_path / "typo"), f"='{tmp_path}/typo' cannot be read: No such file or directory."),
        ("", " is empty: give it a value, or unset it."),
    ]:
        os.environ["ENV_FILE"] = named
        with pytest.raises(SettingsError, match=re.escape(f"ENV_FILE{reason}")):
            read_env_file(path, variable="ENV_FILE")


def test_secrets_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("postgresql://app@db.example/app\r\n")
    (tmp_path / "password").write_text(" s3cret \n")
    monkeypatch.chdir(tmp_path)
    files = {"DATABASE_URL_FILE": "url", "DB_PASSWORD_FILE": "password"}
    entry = database_from_env(environ=files)
    assert entry["HOST"] == "db.example"
    assert entry["PASSWORD"] == " s3cret "
    assert entry["ABS_ORM_APP"]["variables"]["DB_PASSWORD"] == "DB_PASSWORD_FILE"
    # Absolute, because it is read again later, perhaps from another working directory.
    assert entry["ABS_ORM_APP"]["password_file"] == str(tmp_path / "password")
    assert database_from_env()["ABS_ORM_APP"]["password_file"] is None


def test_a_secret_file_that_gives_no_secret_is_refused_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, reason in [
        ("missing", "cannot be read: No such file or directory"),
        ("empty", "names an empty file"),
        ("binary", "does not hold UTF-8 text"),
    ]:
        path = str(tmp_path / name)
        with pytest.raises(SettingsError) as error:
            database_from_env("R_", environ={"R_DB_NAME": "x", "R_DB_PASSWORD_FILE": path})
        assert str(error.value) == f"R_DB_PASSWORD_FILE {reason}."
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_secret_file(str(tmp_path), "DB_PASSWORD_FILE")


@pytest.mark.parametrize("name", ["DATABASE_URL_FILE", "DB_PASSWORD_FILE"])
def test_an_empty_file_variable_has_the_same_message_as_any_other(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is empty: give it a value, or unset it"):
        database_from_env(environ={"DB_NAME": "x", name: " "})


def test_a_secret_and_its_file_cannot_both_be_set(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret")
    given = {**ADDRESS, "DB_PASSWORD": "x", "DB_PASSWORD_FILE": str(tmp_path / "password")}
    with pytest.raises(SettingsError, match="DB_PASSWORD and DB_PASSWORD_FILE are both set: unset"):
        database_from_env(environ=given)


@pytest.mark.parametrize("value", ["s3cr\0et", "s3cr\udcffet"])
def test_a_value_that_is_not_utf_8_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^DB_PASSWORD holds a NUL byte, or is not UTF"):
        database_from_env(environ={**ADDRESS, "DB_PASSWORD": value})


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return python(*arguments, **{**ADDRESS, **variables})


@pytest.mark.parametrize("command", ["check", "check_pool", "no_such_command"])
def test_the_command_line_names_all_wrong_variables_without_a_traceback(command: str) -> None:
    done = run("manage.py", command, DB_POOL_SIZE="abc", DB_POOL_PRE_PING="ture")
    assert done.returncode == 1
    verdict = "FAILED: the settings cannot be used.\n"
    assert done.stdout == (verdict if command == "check_pool" else "")
    assert done.stderr == (
        "SettingsError: 2 settings cannot be used.\n"
        "  DB_POOL_SIZE='abc' is not a whole number from 1 to 262143.\n"
        "  DB_POOL_PRE_PING='ture' is not true or false (did you mean 'true'?).\n"
    )


def test_the_command_line_shows_the_traceback_when_asked() -> None:
    done = run("manage.py", "check", "--traceback", DB_POOL_SIZE="abc")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "DB_POOL_SIZE='abc'" in done.stderr.splitlines()[-1]


def test_another_error_keeps_its_traceback() -> None:
    code = (
        "from abs_orm_app.environment import database_from_env\n"
        "try: database_from_env()\n"
        "except Exception: pass\n"
        "1 / 0"
    )
    done = run("-c", code, DB_POOL_SIZE="abc")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


CAUGHT = """
import sys
from abs_orm_app.environment import SettingsError, database_from_env
def caught():
    try: database_from_env()
    except SettingsError: pass
"""
REPORTER = """
def report(kind, error, traceback):
    sys.stderr.write(f"reported {kind.__name__} with{'' if traceback else 'out'} traceback\\n")
    before(kind, error, traceback)
before, sys.excepthook = sys.excepthook, report
"""


def test_errors_that_are_caught_leave_one_hook() -> None:
    code = f"{CAUGHT}caught()\nhook = sys.excepthook\ncaught()\nprint(sys.excepthook is hook)"
    assert run("-c", code, DB_POOL_SIZE="abc").stdout == "True\n"


@pytest.mark.parametrize("order", [REPORTER, f"{REPORTER}caught()", f"caught(){REPORTER}caught()"])
def test_an_error_reporters_hook_hears_of_a_crash_once(order: str) -> None:
    done = run("-c", f"{CAUGHT}{order}\ndatabase_from_env()", DB_POOL_SIZE="abc")
    assert done.stderr.count("reported SettingsError with traceback") == 1
    assert done.stderr.count("DB_POOL_SIZE='abc'") == 1


def test_a_named_env_file_that_is_missing_stops_the_command_line() -> None:
    done = run("manage.py", "check", ENV_FILE="typo.env")
    assert done.returncode == 1
    assert done.stderr == (
        "SettingsError: ENV_FILE='typo.env' cannot be read: No such file or directory.\n"
    )


def test_a_broken_psycopg_is_reported_with_what_to_install() -> None:
    done = run("manage.py", "check", PSYCOPG_IMPL="missing")
    assert done.returncode == 1
    assert done.stderr.startswith("SettingsError: psycopg does not work here (")
    assert done.stderr.endswith("): pip install 'psycopg[binary]'.\n")
