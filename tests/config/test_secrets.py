"""No message about the settings shows a password, wherever it was put by mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abs_orm_app.config.credentials import current_password
from abs_orm_app.environment import VARIABLES, SettingsError, database_from_env

MARK = "Zq7"  # no message of ours has it
URLS = (
    "postgresql://app:{}@db.example/shop",
    "postgresql://app:{}@db.example:5432/shop?sslmode=require",
    "postgresql://app:{}/shop",
    "postgresql://:{}@/shop",
    "postgresql://app:{}",
    "postgresql:app:{}@db.example/shop",
    "postgresql:/app:{}@db.example/shop",
    "app:{}@db.example/shop",
    "'postgresql://app:{}@db.example/shop'",
    "mysql://app:{}@db.example/shop",
    "nosuch://app:{}@db.example/shop",
    "embedded://app:{}@db.example/shop",
    "postgresql://db.example/shop?user=app&password={}",
    "postgresql://db.example/shop?password={}&sslmode=requires",
    "postgresql://db.example/shop?sslmode=require;password={}",
    "postgresql://db.example/shop?sslmode={}",
    "postgresql://db.example/shop?connect_timeout={}",
    "postgresql://db.example/shop?port={}",
    "postgresql://app:{}@db.example:x/shop",
    "postgresql://app:{}@a,b:1,c:2/",
    "host=db.example user=app password={}",
    "app:{}",
    "db.example:{}",
    "5432:{}",
    "x {}",
)
# What a password may have in it that tears an address apart.
PASSWORDS = st.lists(st.sampled_from([*":/?#@%[]&=;,+ '\"\\", "5", MARK]), max_size=6).map(
    lambda parts: "".join([MARK, *parts, MARK])
)
# Whatever is in these is not shown; the others are of the pool, where a wrong word is shown.
OF_THE_ADDRESS = (
    *("DATABASE_URL", "DATABASE_URL_FILE", "DB_PASSWORD_FILE", "DB_PASSWORD_PROVIDER"),
    *("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD"),
)


def refusal(name: str, text: str) -> str:
    """What is said of a setting; "" where it is accepted."""
    try:
        database_from_env(environ={"DB_NAME": "shop", name: text})
    except SettingsError as error:
        return f"{error} {error!r}"
    return ""


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(OF_THE_ADDRESS), st.sampled_from(["{}", *URLS]), PASSWORDS)
@example("DATABASE_URL_FILE", URLS[0], MARK)
@example("DB_PASSWORD_FILE", "{}", MARK)
@example("DB_PASSWORD_FILE", "/{}", MARK)
@example("DB_PASSWORD_PROVIDER", "{}", MARK)
@example("DB_PORT", "{}", MARK)
@example("DB_HOST", "db.example:{}", MARK)
@example("DATABASE_URL", "postgresql://db.example/shop?password={}", f"{MARK}&{MARK}")
@example("DATABASE_URL", "postgresql://db.example/shop?password={}", f"{MARK}&{MARK}=5")
@example("DATABASE_URL", URLS[0], f"{MARK}?{MARK}&{MARK}=5")
def test_a_refused_setting_shows_nothing_of_a_password(
    name: str, template: str, password: str
) -> None:
    assert MARK not in refusal(name, template.replace("{}", password))


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(VARIABLES)), st.sampled_from(URLS[:-1]), PASSWORDS)
def test_a_url_in_the_place_of_any_setting_is_not_shown(
    name: str, template: str, password: str
) -> None:
    assert MARK not in refusal(name, template.replace("{}", password))


@pytest.mark.parametrize("name", ["DB_USER", "DB_NAME"])
def test_a_user_with_a_password_is_no_name(name: str) -> None:
    with pytest.raises(SettingsError) as error:
        database_from_env(environ={"DB_NAME": "shop", name: f"app:{MARK}"})
    assert str(error.value).startswith(f"{name} holds a colon")
    assert MARK not in str(error.value)


@pytest.mark.parametrize("dotted", [f"{MARK}.{MARK}", f"os.{MARK}", f"os.path.{MARK}"])
def test_a_provider_that_does_not_exist_is_not_shown(dotted: str) -> None:
    with pytest.raises(Exception, match="DB_PASSWORD_PROVIDER cannot be imported") as error:
        current_password({"password_provider": dotted}, {})
    assert MARK not in str(error.value)


def test_a_module_that_the_provider_needs_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens_of_a_test.py").write_text("import no_such_module\ndef fresh(_): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Exception, match=r"No module named 'no_such_module'"):
        current_password({"password_provider": "tokens_of_a_test.fresh"}, {})


def test_a_file_that_is_gone_is_named_by_its_variable(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=re.escape("DB_PASSWORD_FILE cannot be read: No such file")):
        current_password({"password_file": str(tmp_path / "gone")}, {})
