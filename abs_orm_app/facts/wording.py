"""The words for facts, the same in every output."""

from django.conf import settings

from abs_orm_app.config.texts import counted
from abs_orm_app.environment import NEVER, SETTINGS
from abs_orm_app.facts.databases import Configured, Setting, Value
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.sessions import Fleet, Session

LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}


def option_in_words(setting: Setting, mode: str) -> str:
    return setting.option or f"not used in {mode} mode"


WITHOUT_POOL = {
    "null": "No pool: each request opens a connection and closes it.",
    "persistent": "No pool: each thread keeps one connection of its own.",
    "pgbouncer": "No pool in this process: PgBouncer has it.",
}


def format_value(field: str, value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if field == "recycle" and value == NEVER:
        return "never"
    if field in SETTINGS and SETTINGS[field].unit and not isinstance(value, str):
        return f"{value:g} {SETTINGS[field].unit}"
    return str(value)


LONG = 5.0  # seconds after which a statement or an idle transaction is worth a look
MOST = 4  # applications that are named


def sessions_in_trouble(fleet: Fleet) -> tuple[str, str] | None:
    """Return what the sessions of a database wait for, in a sentence, and the SQL that ends it."""
    if fleet.blocked:
        number = len(fleet.blocked)
        wait = "waits" if number == 1 else "wait"
        text = f"{counted(number, 'session')} {wait} for a lock"
        if (seconds := fleet.blocked[0].seconds) is not None:
            text += f", the longest for {seconds:.0f} s"
        if not fleet.roots:
            return f"{text}.", ""
        root, behind = fleet.roots[0]
        whom = f"{behind} of them" if behind < number else "it" if number == 1 else "them"
        if not root.pid:
            return f"{text}; a prepared transaction blocks {whom} (pg_prepared_xacts).", ""
        doing = f", {root.state} for {root.seconds:.0f} s," if root.state and root.seconds else ""
        return f"{text}; {who(root)}{doing} blocks {whom}.", end_of(root)
    for what, session in (
        ("slow statements: the longest has run", fleet.longest),
        ("idle in a transaction: the longest", fleet.forgotten),
    ):
        if session and session.seconds and session.seconds >= LONG:
            return f"{what} for {session.seconds:.0f} s, {who(session)}.", end_of(session)
    return None


def end_of(session: Session) -> str:
    return f"SELECT pg_terminate_backend({session.pid});"


def who(session: Session) -> str:
    """Format as "server process 4711 (web on host)"."""
    of = " on ".join(filter(None, (session.application, session.host)))
    return f"server process {session.pid}" + (f" ({of})" if of else "")


def who_is_connected(fleet: Fleet) -> str:
    """List the sessions of the whole server, as in "web on host 30, nightly-report 10"."""
    names = [
        f"{' on '.join(filter(None, (application, host))) or 'without a name'} {count}"
        for application, host, count in fleet.everywhere
    ]
    more = sum(count for *_, count in fleet.everywhere[MOST:])
    return ", ".join(names[:MOST] + ([f"{more} more"] if more else [])) or "no others"


def role_in_words(database: Configured, server: ServerFacts) -> str:
    wanted = database.wanted_role
    role = "standby" if server.in_recovery else "primary"
    accepts = "read only" if server.in_recovery or server.read_only else "accepts writes"
    if wanted == "either":
        return f"{role}, {accepts}"
    if wanted == "primary" and role == wanted and server.read_only:
        return f"{role}, but its transactions are read-only by default, and this alias writes"
    if wanted == role:
        return f"{role}, {accepts}, as this alias needs"
    return f"{role}, {accepts}, but this alias needs a {wanted}"


def writes_fail(database: Configured, server: ServerFacts) -> str:
    """Return a sentence if the project writes to the alias, but the server accepts no writes."""
    if database.wanted_role != "primary" or not (server.in_recovery or server.read_only):
        return ""
    if "abs_orm_app.W024" in settings.SILENCED_SYSTEM_CHECKS:
        return ""
    what = "a standby" if server.in_recovery else "read-only"
    return f"the server is {what}, so writes fail: {server.address} does not accept them."
