"""What a server sends stays text on the page."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.support.hostile import hostile_server
from tests.support.pages import card, content
from tests.support.projects import OURS, database

pytestmark = pytest.mark.usefixtures("users", "each_view_asks")


@pytest.mark.parametrize("accepts", [False, True], ids=["at login", "at each statement"])
def test_a_server_writes_no_html_into_the_page(staff: Client, accepts: bool) -> None:
    with hostile_server(accepts=accepts) as server:
        given = {
            "ENGINE": OURS,
            "NAME": "<b>name</b>",
            "USER": "<b>user</b>",
            "HOST": "127.0.0.1",
            "PORT": str(server.port),
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 1, "timeout": 1.0}},
        }
        with database(given) as alias:
            html = content(staff)
    assert 'data-state="failed"' in card(html, alias)
    assert "&lt;script&gt;alert(1)" in html
    for harmful in ("<script>alert", "<b>name", "<b>user", "\x1b", "\x9b", "\u202e"):
        assert harmful not in html


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/settings", "nosuch", "settings.md", "."],
)
def test_the_guide_has_its_own_pages_alone(staff: Client, name: str) -> None:
    response = staff.get(f"/admin/abs_orm_app/pools/guide/{name}/")
    assert response.status_code in (302, 404)  # 302: the admin adds or removes a slash
    if response.status_code == 302:
        assert staff.get(response.headers["Location"]).status_code == 404


@pytest.mark.parametrize("value", ["", "x" * 4000, "\x1b[2J", '"><script>', "a:b:c", "é"])
def test_a_pass_that_was_made_up_is_no_pass(staff: Client, value: str) -> None:
    content(staff)
    # Not by `Client.cookies`: newer versions of Python let no client write some of them.
    cookies = f"sessionid={value or 'x'}; abs_orm_app_staff={value}"
    response = Client(headers={"cookie": cookies}).get("/admin/abs_orm_app/pools/")
    assert response.status_code == 302
    assert response.headers["Location"].startswith("/admin/login/")
