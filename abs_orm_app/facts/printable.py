"""Text of others, fit for a terminal: names on a server, its version, its errors."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with a space for what cannot be printed: a server may send what it likes."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
