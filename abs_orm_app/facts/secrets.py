"""The secrets of all aliases, and how a text loses them before anybody sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connections

# Options that are secrets themselves: passwords, sslpassword, oauth_client_secret, SCRAM keys.
_OPTION = re.compile(r"password|secret|scram_(?:client|server)_key")

_read_later: dict[str, str] = {}  # by alias: the last password from a file or a function


def remember(alias: str, password: str) -> None:
    """Know a password that does not stand in DATABASES, but was read for a new connection."""
    _read_later[alias] = password


def scrub(text: str) -> str:
    """Replace each secret of DATABASES by ***.

    What a report shows goes through here where it was not made by this app: errors, addresses.
    """
    entries = [entry for entry in connections.settings.values() if isinstance(entry, Mapping)]
    secrets = {secret for entry in entries for secret in secrets_of(entry)}
    shown = {word for entry in entries for word in _shown(entry)}
    return hide(text, (secrets | {*_read_later.values()}) - shown)


def secrets_of(entry: Mapping[str, Any]) -> set[str]:
    """What of an entry of DATABASES must not be shown."""
    options = entry.get("OPTIONS") or {}
    hidden = [value for name, value in options.items() if _OPTION.search(str(name))]
    # Whoever wrote a whole URL into a part of the address may have written the password, too.
    in_urls = [word for part in _shown(entry) for word in re.findall("://[^:/@]*:([^@]+)@", part)]
    found = (entry.get("PASSWORD"), *hidden, *in_urls)
    # A development database may have one word for all; that the name is shown gives nothing away.
    return {str(secret) for secret in found if secret} - _shown(entry)


def _shown(entry: Mapping[str, Any]) -> set[str]:
    """What of an entry is shown in any case."""
    return {str(entry[part]) for part in ("USER", "NAME", "HOST") if entry.get(part)}


def hide(text: str, secrets: Iterable[str]) -> str:
    """Replace each secret by ***: as it is, URL-encoded, or escaped by Python or libpq."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if secret:
            text = re.sub("".join(map(_spellings, secret)), "***", text)
    return text


def _spellings(char: str) -> str:
    """A pattern for the ways to write a character."""
    encoded = "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogateescape"))
    spellings = [re.escape(form) for form in (f"\\{char}", repr(char)[1:-1], char)]
    # The longest first: a percent sign is also what an encoded one begins with.
    return f"(?:(?i:{encoded})|{'|'.join(spellings)}{'|[+]' * (char == ' ')})"
