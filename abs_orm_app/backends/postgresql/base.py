"""`ENGINE = "abs_orm_app.backends.postgresql"`: Django's engine with the hardened pool."""

from django.db.backends.postgresql.base import DatabaseWrapper as DjangoWrapper

from abs_orm_app.backends.pooled import PooledMixin


class DatabaseWrapper(PooledMixin, DjangoWrapper):
    """Django's PostgreSQL connection wrapper; its `pool` is a `HardenedPool`."""
