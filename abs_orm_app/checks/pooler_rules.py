"""Rules on an alias whose connections go through a pooler, or should."""

from collections.abc import Iterator

from abs_orm_app.checks.finding import Finding, new_finding, of_alias
from abs_orm_app.checks.fixes import set_mode
from abs_orm_app.config.texts import explain
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.pooler import PoolerFacts


@of_alias
def pooler_findings(database: Configured, pooler: PoolerFacts | None) -> Iterator[Finding]:
    """Check whether the settings of an alias fit the pooler that it connects to."""
    if pooler is None:
        if database.mode == "pgbouncer":
            yield new_finding(
                "W036",
                "DB_POOL_MODE is pgbouncer, but the server itself answers: nothing pools, and every"
                " request opens its own connection.",
                f"Set the address of PgBouncer (`{explain('pgbouncer')}` shows how to set one up),"
                " or use a pool in this process:",
                fix=set_mode(database, "pool"),
            )
        return
    if pooler.pool_mode == "statement":
        yield new_finding(
            "E031",
            "The pooler uses statement pooling, which refuses transactions: atomic() fails.",
            "Set the pool mode in pgbouncer.ini:",
            fix="pool_mode = transaction",
        )
    if names := [name for name in pooler.lost if name != "role"]:
        yield new_finding(
            "W033",
            f"The connection options set {', '.join(names)}, but sessions through the pooler do"
            " not have them.",
            "Set them on the server (ALTER ROLE ... SET ...), or with PgBouncer's connect_query,"
            " which this command writes:",
            fix="manage.py pgbouncer_ini",
        )
    keeps = database.pools or database.mode == "persistent"
    if keeps and pooler.pool_mode == "session":
        yield new_finding(
            "W035",
            "The pooler uses session pooling, and this project keeps its connections open: each"
            " of them occupies a server connection, as if there were no pooler.",
            "Set `pool_mode = transaction` in pgbouncer.ini (or ignore this, if the pooler is not"
            " there to pool), and the mode:",
            fix=set_mode(database, "pgbouncer"),
        )
    if pooler.pool_mode == "transaction":
        yield from _transaction_pooling(database, pooler)


def _transaction_pooling(database: Configured, pooler: PoolerFacts) -> Iterator[Finding]:
    if database.server_side_cursors:
        yield new_finding(
            "W031",
            "The pooler uses transaction pooling, where a server-side cursor ends with its"
            " transaction: QuerySet.iterator() outside of atomic() fails with 'cursor does not"
            " exist'.",
            "Set DISABLE_SERVER_SIDE_CURSORS to True, or the mode:",
            fix=set_mode(database, "pgbouncer"),
        )
    if database.prepares:
        yield new_finding(
            "W032",
            "OPTIONS['prepare_threshold'] is set, but the pooler, in transaction pooling, may not"
            " track prepared statements: in the next transaction they are missing, or exist"
            " already.",
            "Remove prepare_threshold; or silence this check and let PgBouncer (1.21 or newer)"
            " track them, in pgbouncer.ini:",
            fix="max_prepared_statements = 200",
        )
    if "role" in pooler.lost:
        yield new_finding(
            "W034",
            "assume_role is set once for each client connection. In transaction pooling, the next"
            " transaction may run in a session without that role, and another client's with it.",
            "Log in as that role, or set it with PgBouncer's connect_query, which this command"
            " writes:",
            fix="manage.py pgbouncer_ini",
        )
    if database.pools:
        yield new_finding(
            "W035",
            "There are two pools: one in this process, and the pooler behind it. A request waits"
            " in two queues, and the pool here counts and recycles connections to the pooler, not"
            " to the server.",
            f"Connect to the server itself (`{explain('pgbouncer')}` compares both), or use the"
            " pooler alone:",
            fix=set_mode(database, "pgbouncer"),
        )
    yield new_finding(
        "I031",
        "The pooler uses transaction pooling. What belongs to a session (SET, LISTEN,"
        " pg_advisory_lock(), temporary tables) is lost, or reaches another client, when the"
        " transaction ends.",
        "Use SET LOCAL, pg_advisory_xact_lock() and ON COMMIT DROP; for LISTEN, connect to the"
        " server itself.",
    )
