"""Makes text from a server safe for a terminal: names, versions, errors."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace what cannot be printed, such as escape sequences, by single spaces."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
