"""How long requests wait for a connection: Erlang's queue M/M/c, as arithmetic.

Requests come at random, independently of each other (a Poisson process of rate λ), hold a
connection for a random time (exponential, mean 1/μ), and wait in one line for one of c connections.
With the load a = λ/μ and the utilisation u = a/c < 1:

    Erlang B, the share that would find all c busy, if nobody waited (by recursion over c):
        B(0) = 1,  B(c) = a B(c-1) / (c + a B(c-1))
    Erlang C, the share that has to wait:
        C = B / (1 - u (1 - B))
    mean wait of all:                C / (cμ - λ)
    the share that waits longer:     P(W > t) = C exp(-(cμ - λ) t)
    so that 99 of 100 wait at most:  ln(100 C) / (cμ - λ), or 0 if C is 0.01 or less

Source: Gross, Shortle, Thompson, Harris, Fundamentals of Queueing Theory, 4th edition, chapter 2.
The recursion makes no factorials, and adds nothing but what is positive: it is stable for any c.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

SHARE = 0.99  # of the requests, that a target is for


@dataclass(frozen=True, kw_only=True)
class Load:
    """What comes to one pool."""

    rate: float  # requests per second, above 0
    hold: float  # seconds that each holds a connection, on average; above 0

    @property
    def busy(self) -> float:
        """Connections in use on average, if there are enough: the load in Erlang."""
        return self.rate * self.hold

    def times(self, factor: float) -> Load:
        """The same requests, more or less often."""
        return Load(rate=self.rate * factor, hold=self.hold)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What a number of connections makes of a load."""

    connections: int
    utilisation: float  # from 1 on, the line grows without end
    probability: float  # that a request has to wait at all
    mean: float  # seconds, over all requests
    p99: float  # seconds, that 99 of 100 requests wait at most


def waits(load: Load) -> Iterator[Wait]:
    """The wait with 1, 2, 3 ... connections, without end."""
    blocking = 1.0
    for connections in count(1):
        blocking = load.busy * blocking / (connections + load.busy * blocking)
        yield _wait(load, connections, blocking)


def _wait(load: Load, connections: int, blocking: float) -> Wait:
    utilisation = load.busy / connections
    spare = (connections - load.busy) / load.hold  # requests per second
    if spare <= 0:
        probability, mean, p99 = 1.0, math.inf, math.inf
    else:
        probability = blocking / (1 - utilisation * (1 - blocking))
        mean = probability / spare
        late = probability / (1 - SHARE)
        p99 = math.log(late) / spare if late > 1 else 0.0
    return Wait(
        connections=connections,
        utilisation=utilisation,
        probability=probability,
        mean=mean,
        p99=p99,
    )


def wait(load: Load, connections: int) -> Wait:
    """The wait with so many connections, 1 or more."""
    return next(islice(waits(load), connections - 1, None))


def smallest(load: Load, target: float) -> Wait:
    """The fewest connections with which 99 of 100 requests wait for `target` seconds at most."""
    return next(found for found in waits(load) if found.p99 <= target)
