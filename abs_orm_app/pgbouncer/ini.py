"""Writes pgbouncer.ini from the settings. docs/pgbouncer.md explains each line."""

import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from abs_orm_app.config.texts import counted, explain
from abs_orm_app.environment import NEVER, PoolSettings
from abs_orm_app.pgbouncer.clients import (
    FILE,
    LOOPBACK,
    THIS_MACHINE,
    client_names,
    client_settings,
    passwords,
    quoted,
)
from abs_orm_app.pgbouncer.target import PARAMETERS, Plan, Target, is_private
from abs_orm_app.pool.growth import RETRY_INTERVAL
from abs_orm_app.pool.pre_ping import PING_AFTER

CLIENTS_PER_PROCESS = 100  # a waiting client costs PgBouncer a few kB, a refused one is an error
FOR_EVER = 315_360_000  # seconds, ten years: to PgBouncer, a lifetime of 0 means "use once"
_SECRET = re.compile("password|secret|token|key")  # matches names of options that may be secrets
RESERVE_AFTER = 0.1  # seconds; any waiting client may use the overflow, but 0 means "never"


def pgbouncer_ini(targets: Sequence[Target], plan: Plan) -> str:
    """Return a complete pgbouncer.ini. Raises ValueError if one PgBouncer cannot serve all."""
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
    return "\n".join([*lines, ""])


def _check_target(each: Target, plan: Plan) -> None:
    where = f"DATABASES[{each.alias!r}]"
    near = each.host.startswith("/") or each.host in (*THIS_MACHINE, *plan.addresses)
    if each.port == plan.listen_port and (near or each.settings.mode == "pgbouncer"):
        raise ValueError(
            f"{where} is at port {each.port}, where PgBouncer itself would listen: set the"
            " address of the server for this command, or another --listen-port."
        )
    for name in each.options:
        if _SECRET.search(name) and not plan.with_password:
            raise ValueError(
                f"{where} sets {name} in its options, which looks like a secret, and connect_query"
                " would contain it: allow that with --with-password, or let the server set it with"
                f" ALTER ROLE {quoted(each.user)} SET {name}."
            )
    if plan.pool_mode == "session" and each.options:
        name, value = next(iter(each.options.items()))
        to = "" if _SECRET.search(name) else f" TO {_literal(value)}"
        raise ValueError(
            f"{where} has options ({name}), which PgBouncer does not pass on, and which a server"
            " connection loses after its first client: let the server set them with"
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
    """Return the settings for which PgBouncer has one value for all databases."""
    pre_ping, recycle = each.settings.pre_ping, each.settings.recycle
    return {
        "query_wait_timeout": f"{each.settings.timeout:g}",
        "server_lifetime": f"{FOR_EVER if recycle == NEVER else recycle:.10g}",
        # The cheapest query that all versions support; an empty one turns the check off.
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
        *[";   and its present password"] * has_password,
        "",
        "[databases]",
    ]
    return "\n".join(lines)


def _database(each: Target, name: str, default: PoolSettings, plan: Plan, private: bool) -> str:
    """Return one line of [databases]: the address, and settings that differ from the default."""
    pairs = {"host": each.host, "port": str(each.port)}
    if name != each.name:
        pairs["dbname"] = each.name
    if private:
        pairs["user"] = each.user
    # Else each client keeps the role that it logs in as. With a user and a password in this line,
    # every role in userlist.txt could act as this one.
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
            " can reach its socket; only that account (and root) can reach this one, too.",
            listen_port=plan.listen_port,
            unix_socket_dir=directories[0],
            unix_socket_mode="0700",
            auth_type="any",
        )
    else:
        yield from _block(
            "Where clients connect, and who may. `manage.py pgbouncer_ini --output` writes the"
            " file. It holds passwords: let only PgBouncer's account read it. PgBouncer looks for"
            " it in the directory where it is started.",
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
        f"{CLIENTS_PER_PROCESS} threads in each of {counted(plan.processes, 'process')}, with room"
        " to spare: a waiting client costs little, a refused client gets an error. The limit of"
        f" open files (ulimit -n) must be above {clients + servers}.",
        max_client_conn=clients,
    )
    yield from _block(
        "Who may use SHOW POOLS and SHOW CONFIG (database `pgbouncer`), and who"
        " may RELOAD, PAUSE and RESUME.",
        # Commas separate the names here, and they cannot be quoted.
        stats_users=", ".join(dict.fromkeys(e.user for e in targets if "," not in e.user)),
    )
    yield ";admin_users = postgres"


def _pools(targets: Sequence[Target], plan: Plan) -> Iterator[str]:
    first = targets[0].settings
    held = "for as long as it is connected."
    if plan.pool_mode == "transaction":
        held = (
            "for the duration of a transaction. What needs a session does not work: SET, LISTEN,"
            " session advisory locks, cursors WITH HOLD."
        )
    yield from _block(f"A client has a server connection {held}", pool_mode=plan.pool_mode)
    if any(each.options for each in targets):
        yield from _block(
            "connect_query above sets what is in `options`.", ignore_startup_parameters="options"
        )
    needed = any(each.prepares for each in targets)
    yield from _block("For OPTIONS['prepare_threshold']; PgBouncer 1.21 or newer.")
    yield f"{'' if needed else ';'}max_prepared_statements = 200"
    yield from _block(
        "DB_POOL_SIZE: connections to the server, for all processes together.",
        default_pool_size=first.size,
    )
    yield from _block(
        f"DB_MAX_OVERFLOW: more of them, after a client has waited for {RESERVE_AFTER:g} s.",
        reserve_pool_size=first.overflow,
        reserve_pool_timeout=f"{RESERVE_AFTER:g}",
    )
    yield from _block(
        "Both together, also if several roles use the same database: each role has its own pool.",
        max_db_connections=first.size + first.overflow,
    )


def _servers(shared: Mapping[str, str]) -> Iterator[str]:
    yield from _block(
        "DB_POOL_TIMEOUT: seconds that a client waits for a server connection.",
        query_wait_timeout=shared["query_wait_timeout"],
    )
    yield from _block(
        f"DB_POOL_RECYCLE: maximum age of a server connection in seconds ({FOR_EVER}: no limit).",
        server_lifetime=shared["server_lifetime"],
    )
    yield from _block(
        "DB_POOL_PRE_PING: check a server connection before its use, if it was idle for longer than"
        " the delay in seconds; without a query, never.",
        server_check_query=shared["server_check_query"],
        server_check_delay=shared["server_check_delay"],
    )
    yield from _block(
        "Seconds between attempts to connect to a server that is down. With the default of 15, an"
        " outage lasts up to 15 s longer than the server is down.",
        server_login_retry=f"{RETRY_INTERVAL:g}",
    )
    given = {name: shared[name] for name in PARAMETERS.values() if name in shared}
    yield from _block("How to connect to the server.", **given)


def _operation(plan: Plan) -> Iterator[str]:
    yield from _block("It logs to stderr. A daemon (-d) needs these.")
    yield ";logfile = pgbouncer.log"
    yield ";pidfile = pgbouncer.pid"
    yield from _block("The account that it changes to if root starts it; it does not run as root.")
    yield f"user = {plan.account}" if plan.account else ";user = pgbouncer"


def _block(comment: str, /, **settings: object) -> Iterator[str]:
    yield ""
    yield from textwrap.wrap(comment, 98, initial_indent="; ", subsequent_indent="; ")
    for name, value in settings.items():
        if re.search(r"[\r\n\0]", str(value)):
            raise ValueError(f"{name} would have a line break, which the file cannot hold.")
        yield f"{name} = {value}".rstrip()


def _value(text: str) -> str:
    """Quote a value of a connection string for PgBouncer, which knows no backslashes."""
    return text if re.fullmatch(r"[\w./:@-]+", text, re.ASCII) else _literal(text)


def _literal(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def write_private(directory: Path, name: str, text: str) -> Path:
    """Write a file with mode 0600, or replace it atomically, and return its path.

    If root writes it, it gets the owner of the directory, such as the account of PgBouncer's
    package. Raises ValueError: the end of a sentence that starts with the directory.
    """
    path, temporary = directory / name, None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # mode 0600
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
            if os.geteuid() == 0:
                owner = directory.stat()
                os.fchown(handle, owner.st_uid, owner.st_gid)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise ValueError(f"{name} cannot be written: {error.strerror}.") from None
    return path
