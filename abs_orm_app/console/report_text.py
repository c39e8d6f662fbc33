"""Formats the report on one alias as text: settings, pool, server, and connection test."""

from abs_orm_app.capacity.budget import allowance
from abs_orm_app.console.layout import Layout
from abs_orm_app.environment import SETTINGS
from abs_orm_app.facts import wording
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.connection_test import ConnectionTest
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.pooler import PoolerFacts
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts

FEW_LEFT = 0.9  # share of the limit in use from which the server section shows a warning


def settings_section(database: Configured, layout: Layout, *, everything: bool = False) -> str:
    """Return the address and the configuration of an alias: everything, or in one line."""
    style = layout.style
    head = [style.MIGRATE_HEADING(f"{database.alias}: {database.address}")]
    if everything:
        head += layout.wrap(f"Engine:  {database.engine}")
        head += layout.wrap(f"Address: {database.address_source}")
    if database.error:
        why = f"The engine cannot be loaded: {database.error}"
        return "\n".join([*head, *map(style.ERROR, layout.wrap(why))])
    if database.is_empty:
        why = f"DATABASES[{database.alias!r}] is empty: no database is set."
        return "\n".join([head[0], *map(style.ERROR, layout.wrap(why))])
    if database.vendor != "postgresql":
        return "\n".join(
            [*head, *layout.wrap("This is not PostgreSQL: there is nothing to check.")]
        )
    without_pool = [*layout.wrap(wording.WITHOUT_POOL.get(database.mode, ""))]
    if not everything:
        return "\n".join([*head, *(without_pool or layout.wrap(_pool_in_words(database)))])
    rows = [
        ("setting", "value", "from", "becomes"),
        *(
            (
                row.name,
                wording.format_value(row.field, row.value),
                row.source,
                wording.option_in_words(row, database.mode),
            )
            for row in database.settings
        ),
    ]
    return "\n".join([*head, "", layout.heading("Settings"), *layout.table(rows), *without_pool])


def _pool_in_words(database: Configured) -> str:
    """Format as "20 + 10 connections per process, timeout 30 s, recycle 3600 s, pre-ping"."""
    size, overflow, timeout, recycle = (
        wording.format_value(field, database.value(field))
        for field in ("size", "overflow", "timeout", "recycle")
    )
    ping = ", pre-ping" if database.value("pre_ping") else ", no pre-ping"
    own = "" if database.hardened else ", Django's own pool"
    sizes = f"{size} + {overflow} connections per process"
    return f"{sizes}, timeout {timeout}, recycle {recycle}{ping}{own}"


def answer_sections(report: Report, layout: Layout, *, everything: bool = False) -> str:
    """Return the sections on this process's pool, the server, the test, and the sessions now."""
    database, test = report.configured, report.test or ConnectionTest()
    if everything:
        server = [
            _server_section(report.server, database, layout),
            _test_section(test, database, layout),
        ]
    else:
        server = [_short_server_section(report.server, test, database, layout)]
    sections = [
        _pool_section(report.active, database, layout, everything),
        *server,
        _now_section(report, layout),
    ]
    return "\n\n".join(filter(None, sections))


def _short_server_section(
    server: ServerFacts | Failure | None, test: ConnectionTest, database: Configured, layout: Layout
) -> str:
    if isinstance(server, Failure):
        return _server_section(server, database, layout)
    rows = []
    mark = layout.signs.bad if test.failure else layout.signs.good
    if server:
        role = wording.role_in_words(database, server).removesuffix(", as this alias needs")
        what = f"PostgreSQL {server.version}, {role}"
        rows = [("version", what), *_pooler(server.pooler), ("in use", _in_use(server))]
        mark = _mark(server, database, layout) if mark == layout.signs.good else mark
    times = (("connect", test.connect_ms), ("checkout", test.checkout_ms), ("query", test.query_ms))
    timed = [f"{name} {ms:.3f} ms" for name, ms in times if ms is not None]
    if timed:
        rows.append(("test", ", ".join(timed)))
    return "\n".join([layout.heading("Server", mark), *layout.pairs(rows)]) if rows else ""


def _in_use(server: ServerFacts) -> str:
    limit = allowance(server)
    share = limit.used / max(limit.connections, 1)
    return f"{limit.used} of {limit.connections}, {share:.0%}"


def _mark(server: ServerFacts, database: Configured, layout: Layout) -> str:
    if wording.writes_fail(database, server):
        return layout.signs.bad
    limit = allowance(server)
    few_left = limit.used / max(limit.connections, 1) >= FEW_LEFT
    return layout.signs.warning if few_left else layout.signs.good


def _pool_section(
    active: Active | Failure | None, database: Configured, layout: Layout, everything: bool
) -> str:
    if active is None or isinstance(active, Failure):
        return ""  # the problems section says why it cannot be created
    differs = active.differs(database)
    if not (differs or active.opened or everything):
        return ""
    rows = [
        (
            SETTINGS[field].name,
            wording.format_value(field, value),
            f"differs: {wording.format_value(field, database.value(field))} is configured"
            * (field in differs),
        )
        for field, value in active.settings.items()
    ]
    lines = [
        layout.style.WARNING(line) if field in differs else line
        for field, line in zip(active.settings, layout.table(rows), strict=True)
    ]
    now = (
        f"{active.connections} open, {active.idle} idle, {active.waiting} waiting"
        if active.opened
        else "not open yet: nothing in this process has used it"
    )
    whose = "" if database.hardened else " (Django's own)"
    about = layout.pairs([("pool", f"{active.pool_class}{whose}"), ("now", now)], 9)
    mark = layout.signs.warning if differs else layout.signs.good
    return "\n".join([layout.heading("Pool of this process", mark), *about, *lines])


def _server_section(
    server: ServerFacts | Failure | None, database: Configured, layout: Layout
) -> str:
    if server is None:
        return ""  # the connection test says why it was not reached
    if isinstance(server, Failure):
        cause = map(layout.style.ERROR, layout.wrap(f"Failed: {server.cause}"))
        heading = layout.heading("Server", layout.signs.warning)
        return "\n".join([heading, *cause, *layout.fix(server.hint, "")])
    tls = f"{server.tls_version or 'on'} {server.tls_cipher or ''}" if server.tls else "off"
    role = f"{server.role} (superuser)" if server.superuser else server.role
    rows = [
        ("version", f"PostgreSQL {server.version}"),
        ("address", server.address),
        ("database", server.database),
        ("role", role),
        ("state", wording.role_in_words(database, server)),
        ("TLS", tls.strip()),
        *_pooler(server.pooler),
        ("limit", allowance(server).why),
        ("in use", _in_use(server)),
        (
            "sessions",
            f"{server.used} now: {server.used_by_role} of this role, "
            f"{server.used_in_database} to this database",
        ),
        ("timeouts", _timeouts(server)),
        ("keepalive", _keepalive(server)),
    ]
    mark = _mark(server, database, layout)
    return "\n".join([layout.heading("Server", mark), *layout.pairs(rows)])


def _pooler(pooler: PoolerFacts | None) -> list[tuple[str, str]]:
    if pooler is None:
        return []
    return [
        ("pooler", f"{pooler.pool_mode} pooling" if pooler.pool_mode else "its mode is unknown")
    ]


def _timeouts(server: ServerFacts) -> str:
    names = (
        ("statement", "statement_timeout"),
        ("lock", "lock_timeout"),
        ("transaction", "transaction_timeout"),
        ("idle in transaction", "idle_in_transaction_session_timeout"),
        ("idle session", "idle_session_timeout"),
    )
    limits = [(short, server.settings[name]) for short, name in names if name in server.settings]
    return ", ".join(f"{short} {f'{limit:g} s' if limit else 'off'}" for short, limit in limits)


def _keepalive(server: ServerFacts) -> str:
    idle, interval, count = (
        server.settings.get(f"tcp_keepalives_{name}", 0) for name in ("idle", "interval", "count")
    )
    if not idle:
        return "none (no TCP)" if server.address.startswith(("/", "@")) else "off"
    return f"after {idle:g} s idle, then {count:g} times every {interval:g} s"


def _test_section(test: ConnectionTest, database: Configured, layout: Layout) -> str:
    """Show how long each step took; the end of the report says why one failed."""
    rows = [("connect", test.connect_ms, "a new connection")]
    if database.pools:
        rows.append(("checkout", test.checkout_ms, "from such a pool, with one connection"))
    rows.append(("query", test.query_ms, "SELECT 1"))
    timed = [(name, f"{ms:.3f} ms", what) for name, ms, what in rows if ms is not None]
    lines = layout.table(timed, right=(1,)) if timed else []
    mark = layout.signs.bad if test.failure else layout.signs.good
    return "\n".join([layout.heading("Connection test", mark), *lines])


def _now_section(report: Report, layout: Layout) -> str:
    """Show what the sessions on the server do now, as far as this role may see."""
    if (fleet := report.now) is None:
        return ""
    rows = []
    for name, session in (
        ("longest query", fleet.longest),
        ("idle in transaction", fleet.forgotten),
    ):
        if session:
            rows.append((name, f"{session.seconds or 0.0:.1f} s, {wording.who(session)}"))
    rows.append(("sessions", wording.who_is_connected(fleet)))
    lines = layout.pairs(rows)
    trouble = report.active.trouble if isinstance(report.active, Active) else ""
    if trouble:
        lines += map(layout.style.WARNING, layout.wrap(f"{trouble[0].upper()}{trouble[1:]}"))
    if seen := wording.sessions_in_trouble(fleet):
        text, line = seen
        lines += map(layout.style.WARNING, layout.wrap(f"{text[0].upper()}{text[1:]}"))
        lines += layout.fix("End that session, as its role or a superuser:", line) if line else []
    lines += layout.wrap(
        "Pools on other machines, of other accounts, or without the live page are not shown here."
    )
    mark = layout.signs.warning if seen or trouble else layout.signs.good
    return "\n".join([layout.heading("Now", mark), *lines])
