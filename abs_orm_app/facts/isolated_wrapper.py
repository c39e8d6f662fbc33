"""A DatabaseWrapper to test an alias with, isolated from what the project uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import connections


@contextmanager
def isolated_wrapper(alias: str, pool: Mapping[str, Any], **options: Any) -> Iterator[Any]:
    """Another DatabaseWrapper of the alias, which `django.db.connections` does not know.

    pool: parameters that replace those of the alias's pool; without a pool they do nothing.
    options: the same for OPTIONS.

    Its pool is closed at the end of the block; its connection has to be closed by the thread that
    made it.
    """
    own: Any = connections[alias]
    options = {**own.settings_dict["OPTIONS"], **options}
    if given := options.get("pool"):
        options["pool"] = {**({} if given is True else given), **pool}
    wrapper = type(own)({**own.settings_dict, "OPTIONS": options}, alias)
    # The class has one dict for all wrappers, which holds the pool of the project.
    pools = wrapper._connection_pools = {}
    try:
        yield wrapper
    finally:
        for mine in pools.values():
            mine.close()
