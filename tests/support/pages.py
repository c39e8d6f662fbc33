"""Visits to the live page in this process, by Django's test client."""

from __future__ import annotations

import re
from html import unescape
from time import monotonic
from typing import Any

from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client

from abs_project.demo import PAGE

SMALL = {"pool": {"min_size": 2, "max_size": 3, "timeout": 20.0}}
IN_TIME = 15.0  # seconds, on a busy machine


def logged_in(**flags: bool) -> Client:
    client = Client()
    client.force_login(User.objects.create_user("somebody", **flags))  # type: ignore[arg-type]
    return client


def permitted(client: Client) -> Client:
    """Give the one user that there is the permission of the page."""
    permission = Permission.objects.get(codename="view_pools")
    User.objects.get().user_permissions.add(permission)
    return client


def get(client: Client, path: str = PAGE) -> HttpResponse:
    began = monotonic()
    response: Any = client.get(path)
    assert monotonic() - began < IN_TIME
    assert isinstance(response, HttpResponse)
    return response


def content(client: Client, path: str = PAGE, status: int = 200) -> str:
    response = get(client, path)
    assert response.status_code == status
    return response.content.decode()


def card(html: str, alias: str) -> str:
    """The part of the page about one alias."""
    return html.partition(f'data-alias="{alias}"')[2].partition("</section>")[0]


def state(html: str, alias: str) -> str:
    return card(html, alias).partition('data-state="')[2].partition('"')[0]


def now(html: str) -> str:
    """What the page says at its top, as text."""
    part = html.partition('id="pool-now"')[2].partition("</section>")[0].partition(">")[2]
    return " ".join(unescape(re.sub("<[^>]+>", "", part)).split())
