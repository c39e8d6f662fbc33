"""The cases: what breaks, how it is mended, and how the pool and fresh connections fare."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from tests.cluster.load import Load, Write
from tests.cluster.nodes import Cluster, Node
from tests.support.servers import wait_until

READ_WRITE = "?target_session_attrs=read-write"
WARM = 3.0  # seconds of writes before the fault
RECOVERY = 60.0  # seconds after a fault, for the first write
AFTER = 3.0  # seconds of writes after the first
ETCD_AWAY = 25.0  # seconds; Patroni demotes the primary after 5 to 10 of them
# A write that begins this long after the last one that the old primary has acknowledged is not in
# flight any more when the primary goes.
IN_FLIGHT = 0.3
LATER = 2.0  # seconds by which the pool may be later than a fresh connection


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault of the primary, and the address that leads around it."""

    title: str
    fault: Callable[[Cluster, Node], None]
    mend: Callable[[Cluster, Node], None] = lambda *_: None
    haproxy: bool = False
    query: str = READ_WRITE
    lasts: float | None = None  # seconds until it is mended; None: until there are writes again
    fails: bool = True  # also writes that begin after the fault may fail

    @property
    def path(self) -> str:
        path = "HAProxy" if self.haproxy else "three hosts"
        return f"{path}, `read-write`" if self.query else path


def _kill(cluster: Cluster, node: Node) -> None:
    node.kill()


def _start(cluster: Cluster, node: Node) -> None:
    cluster.start_node(node)


CASES = {
    "switchover": Case(
        title="switchover", fault=lambda cluster, _: cluster.switch_over(), haproxy=True, query=""
    ),
    "switchover-read-write": Case(
        title="switchover",
        fault=lambda cluster, _: cluster.switch_over(),
        haproxy=True,
        fails=False,
    ),
    "kill": Case(title="`kill -9` of Patroni and PostgreSQL", fault=_kill, mend=_start),
    "freeze": Case(
        title="`SIGSTOP` of PostgreSQL",
        fault=lambda _, node: node.freeze(),
        mend=lambda _, node: node.thaw(),
    ),
    "isolation": Case(
        title="the primary is cut off",
        fault=lambda cluster, node: cluster.isolate(node),
        mend=lambda cluster, _: cluster.rejoin(),
    ),
    "etcd": Case(
        title=f"etcd is away for {ETCD_AWAY:.0f} s",
        fault=lambda cluster, _: cluster.stop_etcd(),
        mend=lambda cluster, _: cluster.start_etcd(),
        haproxy=True,
        lasts=ETCD_AWAY,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Seconds after the fault; None: not in time."""

    case: Case
    primary: float | None  # a server accepts writes on a new timeline
    fresh: float | None  # the first write there on a fresh connection
    pool: float | None  # the first write there through the pool
    interrupted: int  # writes of the pool that were in flight, and failed
    failed: int  # later ones that failed
    failed_reads: int
    lost: int  # acknowledged, and not there at the end
    errors: Sequence[tuple[str, int]] = ()  # what the pool's failures said

    @property
    def faults(self) -> list[str]:
        """What is wrong with it."""
        found = []
        if self.fresh is None:
            found.append("no fresh connection has written")
        elif self.pool is None or self.pool > self.fresh + LATER:
            found.append(f"the pool is more than {LATER:.0f} s later than a fresh connection")
        if self.failed and not self.case.fails:
            found.append(f"{self.failed} writes failed that were not in flight")
        if self.lost:
            found.append(f"{self.lost} acknowledged rows are lost")
        return found


def run(cluster: Cluster, case: Case, directory: Path) -> Outcome:
    """Break the cluster under load, and mend it."""
    cluster.wait_until_healthy()
    node, url = cluster.leader(), cluster.url(haproxy=case.haproxy, query=case.query)
    before = node.timeline()
    with (
        Load("fresh", url, directory / "fresh") as fresh,
        Load("pool", url, directory / "pool") as pool,
    ):
        loads = (fresh, pool)
        wait_until(lambda: all(first(load.writes(), 0) for load in loads), "the first writes", 30)
        sleep(WARM)
        with watched(cluster, before) as promoted:
            began = monotonic()
            case.fault(cluster, node)
            if case.lasts is not None:
                sleep(case.lasts)
                case.mend(cluster, node)
            _wait(lambda: all(first(load.writes(), before) for load in loads), RECOVERY)
        sleep(AFTER)
        if case.lasts is None:
            case.mend(cluster, node)
        cluster.wait_until_healthy()
        for load in loads:
            load.stop()
        found = [load.writes() for load in loads]
    failures = [each for each in found[1] if each.error]
    failed = [each for each in failures if each.key]
    good = max(each.ended for writes in found for each in writes if each.timeline == before)
    interrupted = sum(1 for each in failed if each.began < good + IN_FLIGHT)

    def since(moment: float | None) -> float | None:
        return None if moment is None else moment - began

    return Outcome(
        case=case,
        primary=since(min(promoted, default=None)),
        fresh=since(first(found[0], before)),
        pool=since(first(found[1], before)),
        interrupted=interrupted,
        failed=len(failed) - interrupted,
        failed_reads=len(failures) - len(failed),
        lost=lost(cluster, [each.key for writes in found for each in writes if each.timeline]),
        errors=Counter(_class(each.error) for each in failures).most_common(),
    )


def first(writes: Sequence[Write], timeline: int) -> float | None:
    """When the first write on a later timeline was acknowledged."""
    return min((each.ended for each in writes if each.timeline > timeline), default=None)


@contextmanager
def watched(cluster: Cluster, timeline: int) -> Iterator[list[float]]:
    """Times at which a node became a primary on a later timeline; over Unix sockets."""
    end, found = threading.Event(), list[float]()

    def watch(node: Node) -> None:
        while not end.wait(0.1):
            if node.timeline() > timeline:
                found.append(monotonic())
                return

    # A frozen server keeps its watcher.
    for node in cluster.nodes.values():
        threading.Thread(target=watch, args=(node,), daemon=True).start()
    try:
        yield found
    finally:
        end.set()


def lost(cluster: Cluster, keys: Sequence[str]) -> int:
    """How many rows are not there."""
    with cluster.leader().admin() as admin:
        row = admin.execute(
            "SELECT count(*) FROM unnest(%s::uuid[]) AS one (key)"
            " WHERE NOT EXISTS (SELECT FROM written WHERE key = one.key)",
            [list(keys)],
        ).fetchone()
    assert row is not None
    return int(row[0])


def _class(error: str) -> str:
    """The beginning of an error, without what differs from one to the next."""
    return " ".join(error.split())[:150]


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition; what does not come is a finding, not the end."""
    deadline = monotonic() + seconds
    while not condition() and monotonic() < deadline:
        sleep(0.2)
