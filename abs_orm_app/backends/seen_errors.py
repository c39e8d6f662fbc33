"""Tells the pool which errors its connections meet, by their SQLSTATE."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from django.db.utils import DatabaseErrorWrapper

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


class SeenErrors(DatabaseErrorWrapper):
    """Django's translation of errors, which wraps each statement and each fetch.

    Costs nothing if there is no error.
    """

    wrapper: BaseDatabaseWrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            return
        connection = self.wrapper.connection
        pool: Any = getattr(connection, "_pool", None)
        if exc_value is not None and hasattr(pool, "saw_error"):
            pool.saw_error(connection, exc_value)
        super().__exit__(exc_type, exc_value, traceback)
