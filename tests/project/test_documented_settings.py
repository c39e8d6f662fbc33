"""Every variable is explained, with its default, in .env.example and in docs/settings.md."""

import re
from pathlib import Path

import pytest

from abs_orm_app.config.entry import KEY, AppOptions, OwnSettings
from abs_orm_app.environment import (
    PLACEHOLDER_PASSWORDS,
    SETTINGS,
    VARIABLES,
    PoolSettings,
    database_from_env,
    read_env_file,
)
from tests.support.projects import ROOT

OF_THE_SAMPLE_PROJECT = {"DEBUG", "SECRET_KEY", "ALLOWED_HOSTS"}
MODES = ("pool", "persistent")
DEFAULTS_IN_WORDS = {
    "DB_POOL_PROCESSES": "WEB_CONCURRENCY, else 1",
    "DB_DISABLE_SERVER_SIDE_CURSORS": "true in pgbouncer mode, else false",
}


def documented_defaults() -> dict[str, str]:
    """The default of each variable as the pages write it; empty if there is none."""
    defaults = {}
    for name, variable in VARIABLES.items():
        value = variable.default
        text = f"{value:g}" if isinstance(value, float) else str(value or 0).lower()
        defaults[name] = DEFAULTS_IN_WORDS.get(name, text if value not in ("", None) else "")
        if variable.secret:
            defaults[f"{name}_FILE"] = ""
    return defaults


def test_env_example_explains_every_variable_and_nothing_else() -> None:
    text = (ROOT / ".env.example").read_text()
    found = re.findall(r"^# (.+)\n#? ?([A-Z_]+)=(.*)$", text, re.MULTILINE)
    names = [name for _, name, _ in found]
    assert len(names) == len(set(names)) == len(re.findall(r"^#? ?[A-Z_]+=", text, re.MULTILINE))
    assert set(names) == documented_defaults().keys() | OF_THE_SAMPLE_PROJECT
    for explanation, name, value in found:
        default = documented_defaults().get(name)
        if default:
            assert default in (value, *re.findall(r"Default: (.*)\.$", explanation)), name
        assert not explanation.isspace()


def test_env_example_can_be_copied_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, str] = {}
    monkeypatch.setattr("os.environ", own)
    read_env_file(ROOT / ".env.example")
    assert PoolSettings.from_env() == PoolSettings()
    assert not own.keys() & {"DATABASE_URL", "DB_NAME"}


def test_every_credential_in_env_example_is_known_as_a_placeholder() -> None:
    text = (ROOT / ".env.example").read_text()
    password = re.findall(r"^# DB_PASSWORD=(.*)$", text, re.MULTILINE)
    in_url = re.findall(r"://\w+:(.*?)@", text)
    assert {*password, *in_url} == PLACEHOLDER_PASSWORDS


def test_the_page_of_settings_lists_every_variable_with_its_default() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    # Tables whose second column is the default.
    tables = re.findall(r"^\| variable \| default \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`|-) \|", "".join(tables), re.MULTILINE)
    assert dict(rows) == documented_defaults()


def test_the_table_of_modes_says_what_each_setting_of_the_pool_becomes() -> None:
    text = (ROOT / "docs/settings.md").read_text().partition("\n### Modes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(DB_\w+)` \| `?([\w.-]+).*? \| `?([\w.-]+).*? \|$", text, re.MULTILINE)
    assert rows == [
        (listed.name, *(listed.options.get(mode, "-").split(",")[0] for mode in MODES))
        for name, listed in SETTINGS.items()
        if listed.shown == "always" and name != "mode"
    ]


def test_the_keys_of_abs_orm_app_are_written_and_explained_all() -> None:
    entry = database_from_env(environ={"DATABASE_URL": "postgresql://h/n"})
    text = (ROOT / "docs" / "settings.md").read_text()
    table = text.partition("One more key, `ABS_ORM_APP`")[2].partition("\n\n|")[2]
    rows = re.findall(r"^\| (`.*?`) \|", table.partition("\n\n")[0], re.MULTILINE)
    explained = [name.strip("`") for row in rows for name in row.split(", ")]
    assert set(entry[KEY]) == set(explained) == set(AppOptions.__annotations__)
    own = {name for name, listed in SETTINGS.items() if KEY in listed.options.values()}
    assert own == set(OwnSettings.__annotations__)
