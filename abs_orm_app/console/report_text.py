"""The report on one alias as text: settings, pool, server, and how the connection test went."""

from __future__ import annotations

from collections.abc import Iterable

from abs_orm_app.capacity.budget import allowance, in_use
from abs_orm_app.console.layout import Layout
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.connection_test import ConnectionTest
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.pooler import PoolerFacts
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.server_role import role_in_words
from abs_orm_app.facts.wording import WITHOUT_POOL, format_value, option_in_words

FEW_LEFT = 0.9  # of the limit in use, from which the server section gets a warning


def settings_section(database: Configured, layout: Layout) -> str:
    """The address of an alias, and what is configured."""
    style = layout.style
    head = [
        style.MIGRATE_HEADING(f"{database.alias}: {database.address}"),
        *layout.wrap(f"Engine:  {database.engine}"),
        *layout.wrap(f"Address: {_source(database.address_source)}"),
    ]
    if database.error:
        why = f"The engine cannot be loaded: {database.error}"
        return _lines([*head, *map(style.ERROR, layout.wrap(why))])
    if database.is_empty:
        why = f"DATABASES[{database.alias!r}] is empty: no database is set."
        return _lines([head[0], *map(style.ERROR, layout.wrap(why))])
    if database.vendor != "postgresql":
        return _lines([*head, *layout.wrap("This is not PostgreSQL: there is nothing to check.")])
    rows = [
        ("setting", "value", "from", "becomes"),
        *(
            (
                row.name,
                format_value(row.field, row.value),
                row.source,
                option_in_words(row, database.mode),
            )
            for row in database.settings
        ),
    ]
    without_pool = WITHOUT_POOL.get(database.mode)
    return _lines(
        [
            *head,
            "",
            layout.heading("Settings"),
            *layout.table(rows),
            *(layout.wrap(without_pool) if without_pool else ()),
        ]
    )


def _source(source: str) -> str:
    """As in "DATABASE_URL (environment)"."""
    variable, comma, where = source.partition(", ")
    return f"{variable} ({where})" if comma else source


def answer_sections(report: Report, layout: Layout, *, everything: bool = False) -> str:
    """The pool of this process where there is something to say, the server, and the test.

    everything: show the pool of this process also where it only repeats the settings.
    """
    sections = [
        _pool_section(report.active, report.configured, layout, everything),
        _server_section(report.server, report.configured, layout),
        _test_section(report.test or ConnectionTest(), report.configured, layout),
    ]
    return "\n\n".join(filter(None, sections))


def _pool_section(
    active: Active | Failure | None, database: Configured, layout: Layout, everything: bool
) -> str:
    title = "Pool of this process"
    if active is None:
        return ""
    if isinstance(active, Failure):
        return _lines([layout.heading(title, layout.signs.bad), *_failure(active, layout)])
    differs = active.differs(database)
    if not (differs or active.opened or everything):
        return ""
    rows = [
        (
            name,
            format_value(field, getattr(active, field)),
            f"differs: configured is {format_value(field, database.value(field))}"
            * (field in differs),
        )
        for field, name in _NAMES.items()
    ]
    lines = [
        layout.style.WARNING(line) if field in differs else line
        for field, line in zip(_NAMES, layout.table(rows), strict=True)
    ]
    now = (
        f"{active.connections} open, {active.idle} idle, {active.waiting} waiting"
        if active.opened
        else "not open yet: nothing in this process has used it"
    )
    whose = "" if database.hardened else " (Django's own)"
    about = layout.pairs([("pool", f"{active.pool_class}{whose}"), ("now", now)], 9)
    mark = layout.signs.warning if differs else layout.signs.good
    return _lines([layout.heading(title, mark), *about, *lines])


_NAMES = {
    "size": "pool size",
    "overflow": "overflow",
    "pre_ping": "pre-ping",
    "recycle": "recycle",
    "timeout": "timeout",
}


def _server_section(
    server: ServerFacts | Failure | None, database: Configured, layout: Layout
) -> str:
    if server is None:
        return ""  # the connection test says why it was not reached
    if isinstance(server, Failure):
        return _lines([layout.heading("Server", layout.signs.warning), *_failure(server, layout)])
    tls = f"{server.tls_version or 'on'} {server.tls_cipher or ''}" if server.tls else "off"
    role = f"{server.role} (superuser)" if server.superuser else server.role
    limit = allowance(server)
    used = in_use(limit, server)
    share = used / max(limit.connections, 1)
    rows = [
        ("version", f"PostgreSQL {server.version}"),
        ("address", server.address),
        ("database", server.database),
        ("role", role),
        ("state", role_in_words(database, server)),
        ("TLS", tls.strip()),
        *_pooler(server.pooler),
        ("limit", limit.why),
        ("in use", f"{used} of {limit.connections} {layout.bar(share)} {share:.0%}"),
        (
            "sessions",
            f"{server.used} now: {server.used_by_role} of this role, "
            f"{server.used_in_database} to this database",
        ),
        ("timeouts", _timeouts(server)),
        ("keepalive", _keepalive(server)),
    ]
    mark = layout.signs.warning if share >= FEW_LEFT else layout.signs.good
    return _lines([layout.heading("Server", mark), *layout.pairs(rows)])


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


def _seconds_or_off(seconds: float) -> str:
    return f"{seconds:g} s" if seconds else "off"


def _test_section(test: ConnectionTest, database: Configured, layout: Layout) -> str:
    rows = [("connect", test.connect_ms, "a new connection")]
    if database.pools:
        rows.append(("checkout", test.checkout_ms, "from a pool like this one, of one connection"))
    rows.append(("query", test.query_ms, "SELECT 1"))
    timed = [(name, f"{ms:.3f} ms", what) for name, ms, what in rows if ms is not None]
    lines = layout.table(timed, right=(1,)) if timed else []
    mark = layout.signs.bad if test.failure else layout.signs.good
    failed = _failure(test.failure, layout) if test.failure else []
    return _lines([layout.heading("Connection test", mark), *lines, *failed])


def _failure(failure: Failure, layout: Layout) -> list[str]:
    cause = map(layout.style.ERROR, layout.wrap(f"Failed: {failure.cause}"))
    return [*cause, *layout.fix(failure.hint, "")]


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
