"""The command that explains a finding or a message, from the guide that the package carries."""

from __future__ import annotations


def explain(topic: str) -> str:
    """Give the command for a finding's number ("E021") or an entry of the guide ("server-down")."""
    return f"manage.py check_pool --explain {topic}"
