"""The blocks of docs/embedding.md for the settings that people have, each as a whole project."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # of mkdocs
from psycopg.conninfo import conninfo_to_dict

from abs_orm_app.environment import database_from_env
from tests.support.readme import ROOT, run
from tests.support.servers import Server

pytestmark = pytest.mark.server(roles=["app LOGIN"])

# What the project had before; the settings of the blocks that import others are in `hc`.
BEFORE = """
import os
import environ
env = environ.Env()
SECRET_KEY = "secret"
INSTALLED_APPS = {apps!r}
"""
PROGRAM = """
import django
from django.core.management import call_command
from django.db import connection
django.setup()
call_command("check")
with connection.cursor() as cursor:
    cursor.execute("SELECT 1")
print(connection.pool.min_size, connection.pool.max_size)
"""
FILE = re.compile(r"^# ([\w/]+)\.py.*\n", re.MULTILINE)  # begins the text of a file in a block


def blocks(language: str) -> Iterator[Any]:
    text = (ROOT / "docs" / "embedding.md").read_text()
    text = text.partition("## Platforms")[0].partition('id="your-settings"')[2]
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0].rpartition(">")[2]
        found = re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        yield from (pytest.param(block, id=title) for block in found)


def write(project: Path, block: str, server: Server) -> str:
    """Write the project; return the name of its settings."""
    head, *named = FILE.split(block)
    files = dict(zip(named[::2], named[1::2], strict=True)) or {"settings": head}
    files.pop("config/settings/production", None)  # a line to remove
    before = BEFORE.format(apps=[] if "INSTALLED_APPS" in block else ["abs_orm_app"])
    first = next(iter(files))
    if "hc.settings" in block:
        files = {"hc/settings": before + "DATABASES = {}\n", **files}
    else:
        files[first] = before + files[first]
    parts = conninfo_to_dict(server.conninfo)
    for name, text in files.items():
        path = project / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = text.replace('"db.example.com"', repr(parts["host"]))
        path.write_text(text.replace('"shop"', repr(parts["dbname"])))
    return [*files][-1].replace("/", ".")


@pytest.mark.parametrize("block", [*blocks("python")])
def test_a_project_with_the_block_as_it_stands_has_a_pool_and_no_finding(
    block: str, shared: Server, tmp_path: Path
) -> None:
    if "pydantic" in block:
        pytest.importorskip("pydantic_settings")
    settings = write(tmp_path, block, shared)
    environ = {
        "DATABASE_URL": shared.tcp_url,
        "SHOP_PASSWORD": "secret",
        "PGPORT": str(conninfo_to_dict(shared.conninfo)["port"]),
        "DJANGO_SETTINGS_MODULE": settings,
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
    }
    printed = run(sys.executable, "-c", PROGRAM, cwd=tmp_path, **environ)
    assert printed == "System check identified no issues (0 silenced).\n20 30\n"


@pytest.mark.parametrize("block", [*blocks("yaml")])
def test_a_deployment_as_it_stands_sets_the_pool(block: str, tmp_path: Path) -> None:
    text = yaml.safe_load(block)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    if "services" in text:
        environ = {**text["services"]["web"]["environment"], "DB_PASSWORD_FILE": str(secret)}
    else:
        url = "postgresql://app:secret@db.example/shop"
        environ = {each["name"]: each.get("value", url) for each in text["env"]}
    entry = database_from_env(environ=environ)
    assert entry["OPTIONS"]["pool"]["min_size"] == int(environ["DB_POOL_SIZE"])
    assert {*entry["ABS_ORM_APP"]["variables"].values()} >= environ.keys() - {"DB_POOL_PROCESSES"}
