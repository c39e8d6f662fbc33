"""An engine whose wrappers query when they are made, as those of django-tenants may."""

from __future__ import annotations

from typing import Any, ClassVar

from abs_orm_app.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    made: ClassVar[int] = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        type(self).made += 1
        with self.cursor() as cursor:
            cursor.execute("SELECT 1")
        self.close()
