"""`ENGINE = "abs_orm_app.backends.postgis"`: GeoDjango's engine with the hardened pool."""

from typing import Any

from django.contrib.gis.db.backends.postgis.base import DatabaseWrapper as DjangoWrapper

from abs_orm_app.backends.pooled import PooledMixin


class DatabaseWrapper(PooledMixin, DjangoWrapper):
    """GeoDjango's connection wrapper; its `pool` is a `HardenedPool`."""

    def _configure_connection(self, connection: Any) -> bool:
        """Like Django's, and register the types with psycopg, as Django does when it connects."""
        changed: bool = super()._configure_connection(connection)
        self.register_geometry_adapters(connection)
        return changed

    def prepare_database(self) -> None:
        """Create the extension, and replace the connections that do not know its types yet."""
        super().prepare_database()
        if self.pool is not None:
            self.pool.drain()
