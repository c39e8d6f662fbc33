"""The application_name of a process, and how it is parsed."""

from __future__ import annotations

import os
import socket

import pytest

from abs_orm_app.config.application_name import LONGEST, Name, parse_name, process_name


def test_a_process_names_its_project_its_host_and_itself() -> None:
    assert process_name("shop") == f"shop@{socket.gethostname()[-40:]}:{os.getpid()}"
    assert parse_name(process_name("shop")).pid == os.getpid()


@pytest.mark.parametrize("project", ["p" * 10, "p" * 80])
@pytest.mark.parametrize("host", ["h", "h" * 80 + "-x2x7k"])
def test_a_long_name_is_cut_at_its_beginning(
    monkeypatch: pytest.MonkeyPatch, project: str, host: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    name = process_name(project)
    assert len(name) <= LONGEST
    parsed = parse_name(name)
    assert parsed.pid == os.getpid()
    assert parsed.host is not None
    assert host.endswith(parsed.host)
    assert project.endswith(parsed.application)
    assert parsed.application


def test_characters_that_postgresql_does_not_show_are_replaced() -> None:
    assert process_name("größe").startswith("gr??e@")


@pytest.mark.parametrize("name", ["", "psql", "shop@eu", "a:1", "shop@eu:x"])
def test_the_name_of_another_application_is_not_parsed(name: str) -> None:
    assert parse_name(name) == Name(application=name, host=None, pid=None)
