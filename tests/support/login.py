"""A page that asks for a login first."""

from __future__ import annotations

import re
from http.cookiejar import CookieJar
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener


def page_for(address: str, user: str, password: str, timeout: float = 60.0) -> str:
    """Log in as a browser does, and return the page."""
    return visitor(address, user, password, timeout)[1]


def visitor(
    address: str, user: str, password: str, timeout: float = 60.0
) -> tuple[OpenerDirector, str]:
    """Log in as a browser does; returns what goes on as that user, and the page."""
    jar = CookieJar()
    browser = build_opener(HTTPCookieProcessor(jar))
    with browser.open(address, timeout=timeout) as form:
        login, html = form.geturl(), form.read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', html)
    assert token
    fields = {"username": user, "password": password, "csrfmiddlewaretoken": token[1]}
    body = urlencode({**fields, "next": urlsplit(address).path}).encode()
    with browser.open(login, body, timeout=timeout) as page:
        return browser, str(page.read().decode())
