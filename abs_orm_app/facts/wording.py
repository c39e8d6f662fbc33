"""The words for facts, the same on every output."""

from __future__ import annotations

from abs_orm_app.facts.databases import NEVER, Setting, Value

LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}


def option_in_words(setting: Setting, mode: str) -> str:
    """The option of Django or psycopg_pool that a setting became."""
    if setting.option is None:
        return f"not used in {mode} mode"
    if setting.field == "overflow":
        return f"{setting.option}, size + overflow"
    return setting.option


WITHOUT_POOL = {
    "null": "No pool: each request opens a connection and closes it.",
    "persistent": "No pool: each thread keeps one connection of its own.",
    "pgbouncer": "No pool in this process: PgBouncer has it.",
}


def format_value(field: str, value: Value) -> str:
    """The value of a setting, with its unit."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if field == "recycle" and value == NEVER:
        return "never"
    if field in ("recycle", "timeout", "DB_POOL_LEAK_SECONDS") and not isinstance(value, str):
        return f"{value:g} s"
    return str(value)
