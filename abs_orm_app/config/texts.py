"""Helpers for messages: safe text, suggestions for misspelled names, counts."""

from difflib import get_close_matches


def printable(text: str) -> str:
    """Replace what could control a terminal, such as escape sequences, with single spaces."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def did_you_mean(given: str, known: tuple[str, ...]) -> str:
    """Return ` (did you mean 'x'?)` if a known word resembles the given one, else ""."""
    close = get_close_matches(given, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def counted(number: int, noun: str) -> str:
    """Format as "1 request", "8 requests", "2 processes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def explain(topic: str) -> str:
    """Return the command that explains a finding ("E021") or a guide entry ("server-down")."""
    return f"manage.py check_pool --explain {topic}"
