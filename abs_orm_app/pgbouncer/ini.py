"""The five settings as the text of PgBouncer's files. docs/pgbouncer.md explains each line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from abs_orm_app.config.explain import explain
from abs_orm_app.environment import PoolSettings
from abs_orm_app.facts.databases import NEVER
from abs_orm_app.pgbouncer.clients import (
    LOOPBACK,
    THIS_MACHINE,
    client_names,
    client_settings,
)
from abs_orm_app.pgbouncer.target import PARAMETERS, Plan, Target, is_private
from abs_orm_app.pgbouncer.userlist import FILE, passwords, quoted
from abs_orm_app.pool.constants import PING_AFTER, RETRY_INTERVAL

CLIENTS_PER_PROCESS = 100  # a client that waits costs PgBouncer some kB; one refused is an error
FOR_EVER = 315_360_000  # seconds, ten years: to PgBouncer, a lifetime of 0 means "use it once"
_SECRET = re.compile("password|secret|token|key")  # in the name of an option
RESERVE_AFTER = 0.1  # seconds; the overflow is for whoever has to wait at all, and 0 is "never"


def pgbouncer_ini(targets: Sequence[Target], plan: Plan) -> str:
    """Write a pgbouncer.ini that starts as it is.

    Raises ValueError, one sentence, for what one PgBouncer cannot be at the same time.
    """
    first, private = targets[0], is_private(targets, plan)
    for each in targets:
        _check_target(each, plan)
        _check_shared(first, each)
    passwords(targets)
    names = client_names(targets)
    lines = [
        _head(targets, plan),
        *(_database(t, names[t.alias], first.settings, plan, private) for t in targets),
        "",
        "[pgbouncer]",
        *_clients(targets, plan, private),
        *_pools(targets, plan),
        *_servers(_shared(first)),
        *_operation(plan),
    ]
    return "\n".join(lines)


def _check_target(each: Target, plan: Plan) -> None:
    where = f"DATABASES[{each.alias!r}]"
    near = each.host.startswith("/") or each.host in (*THIS_MACHINE, *plan.addresses)
    if each.port == plan.listen_port and (near or each.settings.mode == "pgbouncer"):
        raise ValueError(
            f"{where} is at port {each.port}, where PgBouncer itself is to listen: give the"
            " address of the server for this command, or another --listen-port."
        )
    for name in each.options:
        if _SECRET.search(name) and not plan.with_password:
            raise ValueError(
                f"{where} sets {name} in its options, which looks like a secret, and connect_query"
                " would hold it: add --with-password if it may, or let the server set it with"
                f" ALTER ROLE {quoted(each.user)} SET {name}."
            )
    if plan.pool_mode == "session" and each.options:
        name, value = next(iter(each.options.items()))
        to = "" if _SECRET.search(name) else f" TO {_literal(value)}"
        raise ValueError(
            f"{where} has options ({name}), which PgBouncer does not pass on, and which no"
            " connection has any more after its first client: let the server set them with"
            f" ALTER ROLE {quoted(each.user)} SET {name}{to}."
        )


def _check_shared(first: Target, other: Target) -> None:
    wanted, found = _shared(first), _shared(other)
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"DATABASES[{first.alias!r}] needs {name} = {wanted.get(name)},"
                f" DATABASES[{other.alias!r}] {found.get(name)}, and one PgBouncer has one for all:"
                " make them equal, or write a file for each with --database."
            )


def _shared(each: Target) -> dict[str, str]:
    """What PgBouncer has once for all its databases."""
    pre_ping, recycle = each.settings.pre_ping, each.settings.recycle
    return {
        "query_wait_timeout": f"{each.settings.timeout:g}",
        "server_lifetime": f"{FOR_EVER if recycle == NEVER else recycle:.10g}",
        # The cheapest query that every version can send; without one, nothing is checked.
        "server_check_query": ";" if pre_ping else "",
        "server_check_delay": f"{PING_AFTER:g}",
        **each.parameters,
    }


def _head(targets: Sequence[Target], plan: Plan) -> str:
    has_password = any(each.password for each in targets)
    lines = [
        f"; Written by `manage.py pgbouncer_ini`; `{explain('pgbouncer')}` says more.",
        "; Start it with `pgbouncer FILE`. To connect through it, the project needs:",
        *(f";   {line}" for line in client_settings(targets, plan)),
        *[";   and the password that it has now"] * has_password,
        "",
        "[databases]",
    ]
    return "\n".join(lines)


def _database(each: Target, name: str, default: PoolSettings, plan: Plan, private: bool) -> str:
    """One line of [databases]: where it is, and what only it has."""
    pairs = {"host": each.host, "port": str(each.port)}
    if name != each.name:
        pairs["dbname"] = each.name
    if private:
        pairs["user"] = each.user
    # Otherwise each client is the role that it logs in as: a user and a password in this line would
    # let every role of userlist.txt in as this one.
    if (each.settings.size, each.settings.overflow) != (default.size, default.overflow):
        pairs["pool_size"] = str(each.settings.size)
        pairs["reserve_pool"] = str(each.settings.overflow)
        pairs["max_db_connections"] = str(each.settings.size + each.settings.overflow)
    in_session = {**each.options, **({"role": each.role} if each.role else {})}
    if in_session and plan.pool_mode != "session":
        calls = (f"set_config({_literal(n)}, {_literal(v)}, false)" for n, v in in_session.items())
        pairs["connect_query"] = f"SELECT {', '.join(calls)}"
    return f"{name} = " + " ".join(f"{name}={_value(value)}" for name, value in pairs.items())


def _clients(targets: Sequence[Target], plan: Plan, private: bool) -> Iterator[str]:
    directories = [each.host for each in targets if each.host.startswith("/")]
    if private:
        yield from _block(
            "Where clients connect. The database asks for no password, because only one account"
            " can reach its socket; so only that account (and root) can reach this one.",
            listen_port=plan.listen_port,
            unix_socket_dir=directories[0],
            unix_socket_mode="0700",
            auth_type="any",
        )
    else:
        yield from _block(
            "Where clients connect, and which may. `manage.py pgbouncer_ini --userlist` writes the"
            " file. It holds passwords: let PgBouncer's account alone read it. It is looked for in"
            " the directory where PgBouncer is started.",
            listen_addr=plan.listen_addr or LOOPBACK,
            listen_port=plan.listen_port,
            **{"unix_socket_dir": directories[0]} if directories else {},
            auth_type="scram-sha-256",
            auth_file=FILE,
        )
        yield from _block("For clients that are not on this machine: TLS.")
        yield ";client_tls_sslmode = require"
        yield ";client_tls_key_file = server.key"
        yield ";client_tls_cert_file = server.crt"
    clients = plan.processes * CLIENTS_PER_PROCESS * len(targets)
    servers = sum(each.settings.size + each.settings.overflow for each in targets)
    yield from _block(
        f"{CLIENTS_PER_PROCESS} threads in each of {_counted(plan.processes)}, amply: a client that"
        " waits costs little, one that is refused is an error. It takes a limit of open files"
        f" (ulimit -n) of {clients + servers} and some more.",
        max_client_conn=clients,
    )
    yield from _block(
        "Who may look at SHOW POOLS and SHOW CONFIG (database `pgbouncer`), as check_pool does; and"
        " who may RELOAD, PAUSE and RESUME.",
        # A comma separates names here, and nothing quotes one.
        stats_users=", ".join(dict.fromkeys(e.user for e in targets if "," not in e.user)),
    )
    yield ";admin_users = postgres"


def _pools(targets: Sequence[Target], plan: Plan) -> Iterator[str]:
    first = targets[0].settings
    if plan.pool_mode == "transaction":
        yield from _block(
            "A client has a server connection for as long as its transaction takes. What needs a"
            " session does not work: SET, LISTEN, session advisory locks, cursors WITH HOLD.",
            pool_mode="transaction",
        )
    else:
        yield from _block(
            "A client has a server connection for as long as it is connected.", pool_mode="session"
        )
    if any(each.options for each in targets):
        yield from _block(
            "What `options` would set is in connect_query above.",
            ignore_startup_parameters="options",
        )
    needed = any(each.prepares for each in targets)
    yield from _block("For OPTIONS['prepare_threshold']; PgBouncer 1.21 or newer.")
    yield f"{'' if needed else ';'}max_prepared_statements = 200"
    yield from _block(
        "DB_POOL_SIZE: connections to the server, for all processes together.",
        default_pool_size=first.size,
    )
    yield from _block(
        f"DB_MAX_OVERFLOW: more, once a client has waited for {RESERVE_AFTER:g} s.",
        reserve_pool_size=first.overflow,
        reserve_pool_timeout=f"{RESERVE_AFTER:g}",
    )
    yield from _block(
        "Both together, also where several roles use the same database: each has its own pool.",
        max_db_connections=first.size + first.overflow,
    )


def _servers(shared: Mapping[str, str]) -> Iterator[str]:
    def some(*names: str) -> dict[str, object]:
        return {name: shared[name] for name in names if name in shared}

    yield from _block(
        "DB_POOL_TIMEOUT: seconds that a client waits for a server connection.",
        **some("query_wait_timeout"),
    )
    yield from _block(
        f"DB_POOL_RECYCLE: seconds that a server connection is used ({FOR_EVER} stands for ever).",
        **some("server_lifetime"),
    )
    yield from _block(
        "DB_POOL_PRE_PING: check a server connection that was idle for longer than the delay,"
        " in seconds, before it is used; no query: never.",
        **some("server_check_query", "server_check_delay"),
    )
    yield from _block(
        "Seconds between attempts to connect to a server that is down. With the default of 15, an"
        " outage goes on for up to 15 s after its end.",
        server_login_retry=f"{RETRY_INTERVAL:g}",
    )
    yield from _block("How to connect to the server.", **some(*PARAMETERS.values()))


def _operation(plan: Plan) -> Iterator[str]:
    yield from _block("It logs to stderr. As a daemon (-d) it needs these.")
    yield ";logfile = pgbouncer.log"
    yield ";pidfile = pgbouncer.pid"
    yield from _block("The account that it becomes, if root starts it: it refuses to be root.")
    yield f"user = {plan.account}" if plan.account else ";user = pgbouncer"


def _counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _block(comment: str, /, **settings: object) -> Iterator[str]:
    yield ""
    yield from textwrap.wrap(comment, 98, initial_indent="; ", subsequent_indent="; ")
    for name, value in settings.items():
        yield f"{name} = {value}".rstrip()


def _value(text: str) -> str:
    """A value of a connection string, in PgBouncer's own syntax: no backslashes."""
    return text if re.fullmatch(r"[\w./:@-]+", text, re.ASCII) else _literal(text)


def _literal(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
