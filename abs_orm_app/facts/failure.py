"""Why a database could not be used: the cause in one sentence without secrets, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.pool.server_errors import UNKNOWN, WRONG_SETTINGS, classify


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something did not work; both texts are fit to be shown."""

    cause: str
    hint: str


def explain(error: BaseException, secrets: Iterable[str] = ()) -> Failure:
    """Put an error in one sentence, without the secrets in any spelling, and add what to do."""
    # Without the secrets first: what follows might change their spelling, or cut one in two.
    cause = _sentence(scrub(str(error), secrets) or type(error).__name__)
    kind = classify(cause)
    ours = isinstance(error, ImproperlyConfigured | LookupError | TypeError | ValueError)
    return Failure(cause=cause, hint=(WRONG_SETTINGS if kind is UNKNOWN and ours else kind).hint)


def _sentence(text: str) -> str:
    """The first line, with a full stop."""
    line = text.strip().partition("\n")[0].rstrip(".")
    line = re.sub(r"^connection (?:failed|is bad): ", "", line)
    # A role or a host may be named so that a terminal would obey it.
    printable = "".join(char if char.isprintable() else " " for char in line)
    return f"{' '.join(printable.split())}."


def scrub(text: str, secrets: Iterable[str]) -> str:
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
