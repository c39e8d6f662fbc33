"""`ENGINE = "abs_orm_app.backends.postgis"`: GeoDjango's engine with the hardened pool."""

from django.contrib.gis.db.backends.postgis.base import DatabaseWrapper as DjangoWrapper

from abs_orm_app.backends.pooled import PooledMixin


class DatabaseWrapper(PooledMixin, DjangoWrapper):
    """GeoDjango's connection wrapper; its `pool` is a `HardenedPool`."""
