"""The outcomes as a table, for the terminal's reader and for docs/failover.md."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.cluster.cases import LATER, Outcome
from tests.cluster.load import READERS, WRITERS
from tests.cluster.nodes import LOOP_WAIT, RETRY_TIMEOUT, TTL
from tests.support.readme import ROOT

PAGE = ROOT / "docs" / "failover.md"
MARKED = re.compile(r"(?<=<!-- cluster -->\n).*?(?=<!-- end -->)", re.DOTALL)
HEAD = (
    "| case | address | a primary again | first write, fresh connection | first write, this pool"
    " | failed writes in flight | later | failed reads |\n|---|---|---|---|---|---|---|---|\n"
)


def table(outcomes: Sequence[Outcome]) -> str:
    return HEAD + "".join(map(row, outcomes))


def row(outcome: Outcome) -> str:
    times = (outcome.primary, outcome.fresh, outcome.pool)
    cells = [
        outcome.case.title,
        outcome.case.path,
        *("never" if each is None else f"{each:.1f} s" for each in times),
        outcome.interrupted,
        outcome.failed,
        outcome.failed_reads,
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


def write(outcomes: Sequence[Outcome], versions: str) -> None:
    """Replace the table of the page."""
    text = PAGE.read_text()
    assert MARKED.search(text), f"{PAGE} has no `<!-- cluster -->` and `<!-- end -->`"
    said = (
        f"{versions}; three nodes, synchronous mode, `ttl` {TTL},"
        f" `loop_wait` {LOOP_WAIT}, `retry_timeout` {RETRY_TIMEOUT}. {WRITERS} threads write, half"
        f" of them in `atomic()`, and {READERS} read, on a pool of size 12 + overflow 12: some"
        " of its connections never hang. In addition, a new connection is opened five times a"
        " second."
        " Times are seconds after the fault."
        f" No acknowledged write was lost; `make cluster` fails if one is, or if the pool is"
        f" {LATER:.0f} s later than the new connections.\n"
    )
    PAGE.write_text(MARKED.sub(lambda _: f"{said}\n{table(outcomes)}", text))
