"""The same where threads are greenlets, and time limits are gevent's.

python -m tests.soak.gevented --seconds 60 --mode request
"""

from gevent import monkey  # type: ignore[import-untyped]

monkey.patch_all()

import faulthandler  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402

from tests.soak import chaos, faults  # noqa: E402
from tests.soak.clients import Client  # noqa: E402
from tests.soak.world import World  # noqa: E402
from tests.support.bytecodes import Interrupted  # noqa: E402

AN_HOUR = 3600.0  # seconds; a greenlet that blocks the others cannot be ended by one of them


def time_out(world: World) -> None:
    """`gevent.Timeout` ends a request wherever it waits."""
    with gevent.Timeout(world.random.uniform(0.0, 0.05), Interrupted):
        Client(world, 1003).request()


# No exception of a signal handler: it would end gevent's hub. No thread can be thrown at, and a
# fork is of the greenlet that asks for it.
FAULTS: dict[faults.Fault, int] = {
    fault: weight
    for fault, weight in faults.FAULTS.items()
    if fault
    not in (
        faults.fork, faults.throw, faults.interrupt_statement, faults.interrupt_request,
        faults.query_in_a_handler,
    )
} | {time_out: 20}  # fmt: skip

if __name__ == "__main__":
    faulthandler.dump_traceback_later(AN_HOUR, exit=True, file=sys.stderr)
    chaos.main(FAULTS, views=0)  # asyncio has a loop of its own
