"""Rules on a server's sessions: its timeouts, its keepalives, and whether it accepts writes."""

from collections.abc import Iterator

from abs_orm_app.checks.finding import Finding, new_finding, of_alias
from abs_orm_app.checks.fixes import alter_role, set_one, variable, written_by_hand
from abs_orm_app.environment import NEVER
from abs_orm_app.facts.databases import Configured, is_local
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.server import ServerFacts

LONGEST_SILENCE = 3600  # seconds until a server checks whether a silent client is still there


@of_alias
def session_findings(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    """Check how the server treats the sessions of an alias."""
    yield from _idle_sessions_end(database, server)
    if _is_remote(server) and not database.keepalives:
        yield new_finding(
            "W023",
            f"TCP keepalives are off for connections to {server.address}: if that machine fails,"
            " requests wait forever for its answer, and a firewall may drop idle connections.",
            "Remove keepalives=0 from OPTIONS or DATABASE_URL.",
        )
    if database.wanted_role == "primary" and server.in_recovery:
        yield new_finding(
            "W024",
            "The server is a standby, but Django writes to this alias.",
            "Set the address of the primary; if you list several hosts, add this parameter to the"
            " address, to connect to the one that accepts writes:",
            fix="?target_session_attrs=read-write",
        )
    elif database.wanted_role == "primary" and server.read_only:
        yield new_finding(
            "W024",
            "The server makes transactions read-only for this role, but Django writes to this"
            " alias.",
            "Allow writes for the role or the database (or silence this check, if nothing is"
            " written):",
            fix=alter_role(server.role, "default_transaction_read_only", "off"),
        )
    if not server.settings.get("statement_timeout"):
        yield new_finding(
            "I021",
            "A query may run without a time limit (statement_timeout is off), even after its"
            " request was given up.",
            "Set a limit that suits your queries, and use another role for migrations:",
            fix=alter_role(server.role, "statement_timeout", "'15s'"),
        )
    yield from _idle_transactions(database, server)
    yield from _lost_clients_stay(server)


def _idle_sessions_end(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    limit = server.settings.get("idle_session_timeout", 0)
    if not limit or server.pooler or not (database.pools or database.mode == "persistent"):
        return
    recycle = database.value("recycle")
    # Django's own pool checks the age of a connection when it is returned, not at checkout.
    checked_at_checkout = database.hardened or not database.pools
    if checked_at_checkout and isinstance(recycle, int | float) and NEVER < recycle <= limit:
        return
    effect = (
        "pre-ping replaces such a connection at its next checkout, which waits for the new one"
        if database.health_checks
        else "without pre-ping, requests get stale connections"
    )
    another = (
        f"Set the recycle time to {limit:.0f} s or less"
        + ("" if written_by_hand(database) else f" ({variable(database, 'recycle')})")
        + ", or turn the timeout off for this role:"
    )
    yield new_finding(
        "W022",
        f"The server ends sessions that are idle for {limit:g} s (idle_session_timeout), but the"
        f" pool keeps connections for longer: {effect}.",
        another if checked_at_checkout and limit >= 1 else "Turn the timeout off for this role:",
        fix=alter_role(server.role, "idle_session_timeout", "0"),
    )


def _idle_transactions(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    limit = server.settings.get("idle_in_transaction_session_timeout", 0)
    timeout = database.value("timeout")
    if not limit:
        each = " With ATOMIC_REQUESTS, each request is one." * database.atomic_requests
        yield new_finding(
            "I022",
            "An idle transaction may stay open, and keep its locks, without a time limit"
            f" (idle_in_transaction_session_timeout is off).{each}",
            "Set a limit:",
            fix=alter_role(server.role, "idle_in_transaction_session_timeout", "'60s'"),
        )
    elif database.atomic_requests and isinstance(timeout, int | float) and limit <= timeout:
        yield new_finding(
            "I023",
            "ATOMIC_REQUESTS makes each request one transaction, and the server ends a session"
            f" whose transaction is idle for {limit:g} s (idle_in_transaction_session_timeout)."
            f" A request that waits for another alias's pool is idle for up to {timeout:g} s.",
            "Use atomic() only where it is needed, and not around calls of other services; or"
            " lower the pool timeout:",
            fix=set_one(database, "timeout", max(round(limit / 2, 1), 0.1)),
        )


def _lost_clients_stay(server: ServerFacts) -> Iterator[Finding]:
    idle = server.settings.get("tcp_keepalives_idle", 0)
    if not _is_remote(server) or server.pooler or 0 < idle <= LONGEST_SILENCE:
        return
    checks = (
        f"The server checks whether a silent client is still there only after {idle:g} s"
        if idle
        else "The server never checks whether a silent client is still there"
    )
    yield new_finding(
        "I024",
        f"{checks} (tcp_keepalives_idle). Until then, the sessions of a machine that has failed"
        " keep their connections and locks.",
        "Make it check after a minute:",
        fix=alter_role(server.role, "tcp_keepalives_idle", "60"),
    )


def _is_remote(server: ServerFacts) -> bool:
    if server.address.startswith(("/", "@")):
        return False
    return not is_local(server.address.rpartition(":")[0])


def server_not_asked(alias: str, failure: Failure) -> Finding:
    """Report, as INFO, that a server did not answer: no check may fail because of that."""
    why = f"The server could not be asked about its limits: {failure.cause}"
    return new_finding("I001", why, failure.hint, alias)
