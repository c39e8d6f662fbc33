"""Removes the secrets of all aliases from a text that is about to be shown."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connections

from abs_orm_app.config.entry import options_of
from abs_orm_app.config.parameters import is_secret

_read_later: dict[str, str] = {}  # by alias: the last password from a file or a function


def remember(alias: str, password: str) -> None:
    _read_later[alias] = password


def scrub(text: str) -> str:
    """Replace each secret of DATABASES with ***.

    Every text in a report that this app did not write must pass through here: errors, addresses.
    """
    entries = [entry for entry in connections.settings.values() if isinstance(entry, Mapping)]
    secrets = {secret for entry in entries for secret in secrets_of(entry)}
    shown = {word for entry in entries for word in _shown(entry)}
    return hide(text, (secrets | {*_read_later.values()}) - shown)


def secrets_of(entry: Mapping[str, Any]) -> set[str]:
    hidden = [value for name, value in options_of(entry).items() if is_secret(name)]
    # A part of the address may contain a whole URL, with its password.
    in_urls = [word for part in _shown(entry) for word in re.findall("://[^:/@]*:([^@]+)@", part)]
    found = (entry.get("PASSWORD"), *hidden, *in_urls)
    # A development database may use one word for everything; it is shown as the name.
    return {str(secret) for secret in found if secret} - _shown(entry)


def _shown(entry: Mapping[str, Any]) -> set[str]:
    """Return the values of an entry that are always shown."""
    return {str(entry[part]) for part in ("USER", "NAME", "HOST") if entry.get(part)}


def hide(text: str, secrets: Iterable[str]) -> str:
    """Replace each secret with ***: as it is, URL-encoded, or escaped by Python or libpq."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if secret:
            text = re.sub("".join(map(_spellings, secret)), "***", text)
    return text


def _spellings(char: str) -> str:
    """Return a pattern for all ways to write a character."""
    encoded = "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogateescape"))
    spellings = [re.escape(form) for form in (f"\\{char}", repr(char)[1:-1], char)]
    # Longest first: an encoded percent sign starts with a percent sign.
    return f"(?:(?i:{encoded})|{'|'.join(spellings)}{'|[+]' * (char == ' ')})"
