"""Rules on the environment alone: variables that nothing reads, or that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping

from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.config.texts import explain


def unknown_variables(names: Mapping[str, str | None]) -> list[Finding]:
    """One finding for each variable that looks like one of ours, with the name that was meant."""
    return [
        new_finding(
            "W001",
            f"Nothing reads the environment variable {name}"
            + (f"; did you mean {meant}?" if meant else "."),
            f"Rename or unset it. `{explain('settings')}` lists the variables.",
        )
        for name, meant in names.items()
    ]


def wrong_processes(reason: str) -> Finding:
    """The number of processes cannot be read from the environment."""
    return new_finding(
        "E008", reason, "Set it to the number of processes that have these pools, or unset it."
    )
