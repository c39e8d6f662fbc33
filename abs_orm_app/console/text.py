"""The reports as text: aligned, readable at 80 columns, coloured by Django's styles."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.core.checks import ERROR, WARNING

from abs_orm_app.capacity.budget import allowance
from abs_orm_app.checks.finding import Finding
from abs_orm_app.console.profiles import Compared
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.pooler import PoolerFacts
from abs_orm_app.facts.report import Active, ConnectionTest, Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.wording import LEVELS, WITHOUT_POOL, became, shown

WIDTH = 80
INDENT = "  "


# django.core.management.color.Style: its roles are made at run time.
Style = Any


def configured_section(database: Configured, style: Style) -> str:
    """The head of an alias, and what is configured."""
    head = [
        style.MIGRATE_HEADING(f"{database.alias}: {database.address}"),
        *wrap(f"Engine {database.engine}; address from {database.address_source}."),
    ]
    if database.error:
        return _lines([*head, *wrap(f"The engine cannot be loaded: {database.error}")])
    if database.vendor != "postgresql":
        return _lines([*head, *wrap("It is not PostgreSQL: there is nothing here to check.")])
    rows = [
        (row.name, shown(row.field, row.value), row.source, became(row, database.mode))
        for row in database.settings
    ]
    return _lines([*head, "", style.MIGRATE_LABEL("Configured"), *table(rows)])


def answer_sections(report: Report, style: Style) -> str:
    """What is active, what the server says, and how it answered."""
    database = report.configured
    sections = {
        "Active": _active(report.active, database, style),
        "Server": _server(report.server, style),
        "Connection test": _connection_test(report.test or ConnectionTest(), database, style),
    }
    return "\n\n".join(
        _lines([style.MIGRATE_LABEL(name), *lines]) for name, lines in sections.items()
    )


def _active(active: Active | Failure | None, database: Configured, style: Style) -> list[str]:
    if active is None:
        return wrap(WITHOUT_POOL.get(database.mode, "No pool."))
    if isinstance(active, Failure):
        return _failure(active, style)
    differs = active.differs(database)
    names = {
        "size": "pool size",
        "overflow": "overflow",
        "pre_ping": "pre-ping",
        "recycle": "recycle",
        "timeout": "timeout",
    }
    rows = [
        (
            name,
            shown(field, getattr(active, field)),
            f"differs: configured is {shown(field, database.value(field))}" * (field in differs),
        )
        for field, name in names.items()
    ]
    lines = [
        style.WARNING(line) if field in differs else line
        for field, line in zip(names, table(rows), strict=True)
    ]
    now = (
        f"{active.connections} open, {active.idle} idle, {active.waiting} waiting"
        if active.opened
        else "not opened yet: nothing in this process has needed it"
    )
    whose = "" if database.hardened else " (Django's own)"
    return [*pairs([("pool", f"{active.pool_class}{whose}"), ("now", now)], 9), *lines]


def _server(server: ServerFacts | Failure | None, style: Style) -> list[str]:
    if server is None:
        return wrap("Not reached.")
    if isinstance(server, Failure):
        return _failure(server, style)
    tls = f"{server.tls_version or 'on'} {server.tls_cipher or ''}" if server.tls else "off"
    role = f"{server.role} (superuser)" if server.superuser else server.role
    state = "standby, read only" if server.in_recovery else "takes writes"
    if server.read_only and not server.in_recovery:
        state = "transactions are read only by default"
    return pairs(
        [
            ("version", f"PostgreSQL {server.version}"),
            ("address", server.address),
            ("database", server.database),
            ("role", role),
            ("state", state),
            ("TLS", tls.strip()),
            *_pooler(server.pooler),
            ("limit", allowance(server).why),
            (
                "in use",
                f"{server.used} connections now: {server.used_by_role} by this role, "
                f"{server.used_in_database} to this database",
            ),
            ("timeouts", _timeouts(server)),
            ("keepalive", _keepalive(server)),
        ]
    )


def _pooler(pooler: PoolerFacts | None) -> list[tuple[str, str]]:
    if pooler is None:
        return []
    console = pooler.console
    version = f" {console.version}" if console else ""
    mode = f"{pooler.pool_mode} pooling" if pooler.pool_mode else "pool mode unknown"
    rows = [("pooler", f"{pooler.software}{version}, {mode}")]
    if console:
        wait = f", for {console.longest_wait:.3g} s" if console.clients_waiting else ""
        rows += [
            (
                "its pool",
                f"{console.servers_active} server connections in use, {console.servers_idle} idle, "
                f"up to {console.pool_size} + {console.reserve_pool}; clients: "
                f"{console.clients_active} active, {console.clients_waiting} waiting{wait}",
            ),
            ("its config", ", ".join(f"{name} {text}" for name, text in console.config.items())),
        ]
    return rows


def _timeouts(server: ServerFacts) -> str:
    names = (
        ("statement", "statement_timeout"),
        ("lock", "lock_timeout"),
        ("transaction", "transaction_timeout"),
        ("idle in transaction", "idle_in_transaction_session_timeout"),
        ("idle session", "idle_session_timeout"),
    )
    return ", ".join(
        f"{short} {_seconds_or_off(server.settings[name])}"
        for short, name in names
        if name in server.settings
    )


def _keepalive(server: ServerFacts) -> str:
    idle, interval, count = (
        server.settings.get(f"tcp_keepalives_{name}", 0) for name in ("idle", "interval", "count")
    )
    if not idle:
        return "none (no TCP)" if server.address.startswith(("/", "@")) else "off"
    return f"after {idle:g} s idle, then {count:g} times every {interval:g} s"


def _connection_test(test: ConnectionTest, database: Configured, style: Style) -> list[str]:
    rows = [("connect", test.connect_ms, "a new connection")]
    if database.pools:
        rows.append(
            ("checkout", test.checkout_ms, "from a pool like this one, with one connection")
        )
    rows.append(("query", test.query_ms, "SELECT 1"))
    lines = table(
        [(name, f"{ms:.3f} ms", what) for name, ms, what in rows if ms is not None], right=(1,)
    )
    return [*lines, *(_failure(test.failure, style) if test.failure else [])]


def _failure(failure: Failure, style: Style) -> list[str]:
    return [style.ERROR(line) for line in wrap(f"Failed: {failure.cause}")] + wrap(failure.hint)


def findings_section(findings: Sequence[Finding], style: Style) -> str:
    """All findings, the gravest first."""
    lines = [style.MIGRATE_LABEL("Findings")]
    if not findings:
        lines.append(INDENT + style.SUCCESS("None."))
    for finding in sorted(findings, key=lambda f: -f.level):
        paint = {ERROR: style.ERROR, WARNING: style.WARNING}.get(finding.level, style.NOTICE)
        alias = f" {finding.alias}" if finding.alias else ""
        lines += [
            INDENT + paint(f"{LEVELS[finding.level]} {finding.id}{alias}"),
            *wrap(finding.message, 2),
            *wrap(finding.hint, 2),
            INDENT * 2 + finding.guide,
        ]
    return _lines(lines)


def comparison_section(profile: str, rows: Sequence[Compared], style: Style) -> str:
    """The settings of each alias beside the profile's, and the verdict."""
    heading = style.MIGRATE_LABEL(f"Comparison with {profile}")
    if not rows:
        return _lines([heading, *wrap("There is no PostgreSQL alias to compare.")])
    blocks = []
    for alias in dict.fromkeys(row.alias for row in rows):
        compared = [row for row in rows if row.alias == alias]
        columns = ("Setting", "here", profile, "match")
        first, *others = table([columns, *map(_compared, compared)])
        marked = [
            line if row.matches else style.ERROR(line)
            for row, line in zip(compared, others, strict=True)
        ]
        blocks.append(_lines([first, *marked, _verdict(profile, alias, compared, style)]))
    return _lines([heading, "\n\n".join(blocks)])


def _compared(row: Compared) -> tuple[str, str, str, str]:
    match = "yes" if row.matches else "no"
    return row.name, shown(row.field, row.here), shown(row.field, row.wanted), match


def _verdict(profile: str, alias: str, rows: Iterable[Compared], style: Style) -> str:
    """One line: does the alias match?"""
    names = [row.name for row in rows if not row.matches]
    if not names:
        return f"{INDENT}{style.SUCCESS(f'{alias} matches {profile}.')}"
    differs = f"{alias} differs from {profile} in {', '.join(names)}."
    return _lines(style.ERROR(line) for line in wrap(differs))


def _seconds_or_off(seconds: float) -> str:
    return f"{seconds:g} s" if seconds else "off"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines, each column as wide as its widest cell; columns in `right` are flush right.

    Where a row is too wide, its last cell goes on a line below.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = INDENT + INDENT.join(cells).rstrip()
        if len(line) > WIDTH:
            line = f"{INDENT}{INDENT.join(cells[:-1]).rstrip()}\n{INDENT * 2}{row[-1]}"
        lines.append(line)
    return lines


def pairs(rows: Sequence[tuple[str, str]], width: int = 0) -> list[str]:
    """Names and values as lines; a long value goes on below itself."""
    width = max(width, *(len(name) for name, _ in rows))
    return [line for name, value in rows for line in _hang(name.ljust(width), value)]


def _hang(name: str, value: str) -> Iterator[str]:
    margin = f"{INDENT}{name}{INDENT}"
    yield from textwrap.wrap(
        value,
        WIDTH,
        initial_indent=margin,
        subsequent_indent=" " * len(margin),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [margin.rstrip()]


def wrap(text: str, depth: int = 1) -> list[str]:
    indent = INDENT * depth
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
