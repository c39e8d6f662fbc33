"""A wrapper to try an alias out with, apart from what the project uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import connections


@contextmanager
def trial(alias: str, pool: Mapping[str, Any], **options: Any) -> Iterator[Any]:
    """Another DatabaseWrapper of the alias, which `django.db.connections` does not know.

    pool: parameters that its pool has instead of the alias's; without a pool they do nothing.
    options: the same for OPTIONS.

    In the end its pool is closed; its connection is for the thread that has made it to close.
    """
    own: Any = connections[alias]
    options = {**own.settings_dict["OPTIONS"], **options}
    if given := options.get("pool"):
        options["pool"] = {**({} if given is True else given), **pool}
    wrapper = type(own)({**own.settings_dict, "OPTIONS": options}, alias)
    # The class has one dict for all wrappers, where the pool of the project is.
    pools = wrapper._connection_pools = {}
    try:
        yield wrapper
    finally:
        for mine in pools.values():
            mine.close()
