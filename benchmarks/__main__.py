"""Run the benchmark: `make bench`, or `python -m benchmarks [--quick] [--only NAME]`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

from benchmarks import (
    beyond,
    crowd,
    failover,
    faults,
    leases,
    load,
    memory,
    present,
    speed,
    tasks,
)
from benchmarks.figure import FULL, QUICK, Effort, Figure
from benchmarks.peers import LEASING, PEERS, Peer
from benchmarks.plot import draw
from benchmarks.targets import targets
from benchmarks.worker import Worker, WorkerError
from tests.support.servers import Server

PAGE = "docs/benchmarks.md"
PLOT = "benchmarks.png"

Measure = Callable[[Sequence[Peer], Effort], Figure]

FIGURES: Mapping[str, Measure] = {
    "checkout": speed.checkouts,
    "django-checkout": speed.django_checkouts,
    "beyond": beyond.beyond_persistent,
    "request": speed.requests,
    "distant-request": speed.distant_requests,
    "messages": speed.messages,
    "load": load.load,
    "burst": partial(load.burst, 0.02),
    "burst-5": partial(load.burst, 0.005),
    "burst-1": partial(load.burst, 0.001),
    "opening": crowd.opening,
    "distant-burst": load.distant_burst,
    "crowd": partial(crowd.crowd, 30),
    "crowd-500": partial(crowd.crowd, 500),
    "rest": crowd.rest,
    "restart": faults.restart,
    "restart-threads": faults.restart_under_threads,
    "outage": faults.outage,
    "hung-server": faults.hung_server,
    "hung-sessions": faults.hung_sessions,
    "switchover": failover.switchover,
    "switchover-read-write": failover.switchover_read_write,
    "crash": failover.crash,
    "name-is-gone": failover.name_is_gone,
    "dead-host": failover.dead_host,
    "network-is-cut": failover.network_is_cut,
    "memory": memory.memory,
    "tasks": tasks.tasks,
}
# Of LEASING, too.
LEASES: Mapping[str, Measure] = {
    "elsewhere": leases.elsewhere,
    "long-threads": leases.long_threads,
    "inherited": leases.inherited,
}


def main() -> None:
    options = _options()
    effort = QUICK if options.quick else FULL
    peers, missing = _those_that_run()
    for line in (present.surroundings(), *present.absences(missing)):
        print(line, end="\n\n")
    figures: dict[str, Figure] = {}
    failed: list[str] = []
    for name in options.only or (*FIGURES, *LEASES):
        began = monotonic()
        try:
            if name in LEASES:
                figures[name] = LEASES[name](peers, effort)
            else:
                figures[name] = FIGURES[name]([p for p in peers if p not in LEASING], effort)
        except Exception:  # of a peer; the others' figures took a quarter of an hour
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"## {figures[name].title}\n\n{present.section(figures[name])}\n", flush=True)
        print(f"({name}: {monotonic() - began:.0f} s)\n", file=sys.stderr, flush=True)
    judged = list(targets(figures))
    if judged:
        print(f"## Targets\n\n{present.target_table(judged)}")
    if options.output:
        page = options.output / PAGE
        page.write_text(present.document(judged, missing, _command(options), PLOT))
        (options.output / present.RESULTS).write_text(present.results(judged, figures.values()))
        draw(figures, page.with_name(PLOT))
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short rounds, to try it out")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*FIGURES, *LEASES],
        metavar="NAME",
        help=f"one figure; may be repeated: {', '.join((*FIGURES, *LEASES))}",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"write {PAGE} with its picture, and {present.RESULTS}, below this directory",
    )
    return parser.parse_args()


def _command(options: argparse.Namespace) -> str:
    whole = not options.quick and not options.only
    return "make bench" if whole else " ".join(["python -m benchmarks", *sys.argv[1:]])


def _those_that_run() -> tuple[list[Peer], dict[Peer, str]]:
    """The peers that open a connection here; those that do not, with the reason."""
    missing: dict[Peer, str] = {}
    with Server() as server:
        for peer in (*PEERS, *LEASING):
            with Worker(peer, server.url) as worker:
                try:
                    worker.call(faults.query_once)
                except WorkerError as error:
                    missing[peer] = error.reason
    return [peer for peer in (*PEERS, *LEASING) if peer not in missing], missing


if __name__ == "__main__":
    main()
