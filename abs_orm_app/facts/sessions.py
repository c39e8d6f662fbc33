"""Reads the sessions of a database from its server, for all processes and applications."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from abs_orm_app.config.application_name import Name, parse_name
from abs_orm_app.config.texts import printable

STATES = {  # others are unknown, such as those of sessions that this role may not see
    "active": "active",
    "fastpath function call": "active",
    "idle": "idle",
    "idle in transaction": "idle in transaction",
    "idle in transaction (aborted)": "idle in transaction",
}

# One round trip, and only what a role without privileges may read. Such a role sees the names of
# other roles' sessions, but neither address nor state.
# pg_blocking_pids is called only for sessions that wait for a lock, because it stops the lock
# manager for a moment; so does pg_locks, which is read once, for the first of them.
_QUERY = """
WITH waits AS MATERIALIZED (
    SELECT pid, min((to_jsonb(l) ->> 'waitstart')::timestamptz) AS since  -- PostgreSQL 14
    FROM pg_locks l WHERE NOT granted GROUP BY pid
)
SELECT coalesce(json_agg(json_build_object(
    'pid', pid,
    'here', datname = current_database(),
    'application_name', coalesce(application_name, ''),
    'address', host(client_addr),
    'state', state,
    'seconds', greatest(extract(epoch FROM clock_timestamp() - state_change), 0),
    'waits', CASE wait_event_type WHEN 'Lock' THEN (
        SELECT greatest(extract(epoch FROM clock_timestamp() - since), 0)
        FROM waits WHERE waits.pid = activity.pid AND since IS NOT NULL) END,
    'blockers', CASE wait_event_type WHEN 'Lock' THEN pg_blocking_pids(pid) ELSE '{}' END
)), '[]')::text
FROM pg_stat_activity activity
WHERE datname IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
  AND coalesce(backend_type, 'client backend') = 'client backend'
"""


@dataclass(frozen=True, kw_only=True)
class Sessions:
    active: int
    idle: int
    in_transaction: int  # idle in transaction
    unknown: int  # whose state this role may not see

    @property
    def sessions(self) -> int:
        return self.active + self.idle + self.in_transaction + self.unknown


@dataclass(frozen=True, kw_only=True)
class Application(Sessions):
    application: str  # "" if they have no name
    host: str  # from the process's name, else the address; "" for a Unix socket, or if hidden
    processes: int | None  # None: unknown, because a name lacks the pid

    # Seconds that the oldest session has been in that state; None: there is none.
    oldest_active: float | None
    oldest_in_transaction: float | None


@dataclass(frozen=True, kw_only=True)
class Process(Sessions):
    """The sessions of one process that names itself PROJECT@HOST:PID."""

    application: str
    host: str
    pid: int  # on that host


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session that blocks another, or is blocked."""

    pid: int  # of the server's process
    application: str
    host: str
    state: str | None  # None: this role may not see it, or the session is not of this database
    seconds: float | None  # in that state


@dataclass(frozen=True, kw_only=True)
class Blocked:
    session: Session
    seconds: float | None  # that it has waited; None on PostgreSQL 13
    blockers: tuple[Session, ...]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All sessions of one database, without this one."""

    groups: tuple[Application, ...]  # the largest first
    blocked: tuple[Blocked, ...]  # the longest wait first
    processes: tuple[Process, ...] = ()  # those that name themselves, sorted
    roots: tuple[tuple[Session, int], ...] = ()  # unblocked blockers, and how many wait for each
    longest: Session | None = None  # with the longest statement that waits for no lock
    forgotten: Session | None = None  # the longest idle in transaction
    everywhere: tuple[tuple[str, str, int], ...] = ()  # of the server: application, host, sessions


class _Row(NamedTuple):
    session: Session
    name: Name
    here: bool  # in this database
    waits: float | None
    blockers: list[int]


def read_fleet(connection: Any) -> Fleet:
    """Query the server, in one round trip, over an open connection."""
    everywhere = [_read(row) for row in json.loads(connection.execute(_QUERY).fetchone()[0])]
    here = [row for row in everywhere if row.here]
    by_pid = {row.session.pid: row.session for row in here}
    members: dict[tuple[str, str], list[_Row]] = {}
    for row in here:
        members.setdefault((row.session.application, row.session.host), []).append(row)
    blocked = [
        Blocked(
            session=row.session,
            seconds=row.waits,
            blockers=tuple(by_pid.get(pid) or _elsewhere(pid) for pid in row.blockers),
        )
        for row in here
        if row.blockers
    ]
    groups = [_group(*key, rows) for key, rows in members.items()]
    running = [row.session for row in here if not row.blockers]
    counts = Counter((row.session.application, row.session.host) for row in everywhere)
    return Fleet(
        roots=tuple(_roots(blocked)),
        longest=_oldest(running, "active"),
        forgotten=_oldest(running, "idle in transaction"),
        everywhere=tuple((*key, count) for key, count in counts.most_common()),
        groups=tuple(sorted(groups, key=lambda g: (-g.sessions, g.application, g.host))),
        blocked=tuple(sorted(blocked, key=_longest_first)),
        processes=tuple(_processes(here)),
    )


def _oldest(sessions: Iterable[Session], state: str) -> Session | None:
    found = [session for session in sessions if session.state == state]
    return max(found, key=lambda session: session.seconds or 0.0, default=None)


def _roots(blocked: Iterable[Blocked]) -> list[tuple[Session, int]]:
    """Return the sessions that block others but wait for none, with how many wait behind each."""
    chains = {each.session.pid: each.blockers for each in blocked}
    counts: Counter[Session] = Counter()
    for pid in chains:
        seen: set[int] = set()
        ahead = list(chains[pid])
        while ahead:
            one = ahead.pop()
            if one.pid in seen:
                continue
            seen.add(one.pid)
            if one.pid in chains:
                ahead += chains[one.pid]
            else:
                counts[one] += 1
    return counts.most_common()


def _processes(rows: Iterable[_Row]) -> list[Process]:
    found: dict[tuple[str, str, int], list[Session]] = {}
    for row in rows:
        if row.name.host is not None and row.name.pid is not None:
            key = (row.name.application, row.name.host, row.name.pid)
            found.setdefault(key, []).append(row.session)
    return [
        Process(application=application, host=host, pid=pid, **_counts(sessions))
        for (application, host, pid), sessions in sorted(found.items(), key=lambda item: item[0])
    ]


def _group(application: str, host: str, rows: Iterable[_Row]) -> Application:
    sessions = [row.session for row in rows]
    pids = {row.name.pid for row in rows}
    return Application(
        application=application,
        host=host,
        processes=None if None in pids else len(pids),
        **_counts(sessions),
        oldest_active=_age(_oldest(sessions, "active")),
        oldest_in_transaction=_age(_oldest(sessions, "idle in transaction")),
    )


def _age(session: Session | None) -> float | None:
    return None if session is None else session.seconds or 0.0


def _counts(sessions: Iterable[Session]) -> dict[str, int]:
    states = Counter(session.state for session in sessions)
    return {
        "active": states["active"],
        "idle": states["idle"],
        "in_transaction": states["idle in transaction"],
        "unknown": states[None],
    }


def _longest_first(blocked: Blocked) -> float:
    waits = blocked.session.seconds if blocked.seconds is None else blocked.seconds
    return -(waits or 0.0)


def _elsewhere(pid: int) -> Session:
    """Describe a blocker outside of this database, such as a prepared transaction (pid 0)."""
    return Session(pid=pid, application="", host="", state=None, seconds=None)


def _read(row: Mapping[str, Any]) -> _Row:
    name = parse_name(printable(row["application_name"]))
    session = Session(
        pid=row["pid"],
        application=name.application,
        host=name.host or row["address"] or "",
        state=STATES.get(row["state"]),
        seconds=row["seconds"],
    )
    blockers = list(dict.fromkeys(row["blockers"]))
    return _Row(session, name, row["here"], row["waits"], blockers)
