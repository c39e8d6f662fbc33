"""A real PostgreSQL server from a wheel, for a machine that has none."""

from abs_orm_app.embedded.cluster import embedded_url, stop
from abs_orm_app.embedded.wheel import EmbeddedError

__all__ = ["EmbeddedError", "embedded_url", "stop"]
