"""The pool as a check of django-health-check 4.

HealthCheckView.as_view(checks=["abs_orm_app.integrations.health_check.Pool"])
"""

import dataclasses
from datetime import timedelta

from health_check.base import HealthCheck  # type: ignore[import-untyped]
from health_check.exceptions import (  # type: ignore[import-untyped]
    ServiceUnavailable,
    ServiceWarning,
)

from abs_orm_app.integrations.health import SECONDS, check


@dataclasses.dataclass
class Pool(HealthCheck):  # type: ignore[misc]
    """Check that an alias serves. Waiting requests are a warning; no answer in time is an error."""

    alias: str = "default"
    timeout: timedelta = dataclasses.field(default=timedelta(seconds=SECONDS), repr=False)

    def run(self) -> None:
        seconds = self.timeout.total_seconds()
        health = check([self.alias], seconds)[self.alias]
        if health.state == "failed":
            raise ServiceUnavailable(f"Not served within {seconds:g} seconds") from health.error
        if health.state == "degraded":
            raise ServiceWarning(f"{health.waiting} waiting for a connection")
