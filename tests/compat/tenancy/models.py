"""A tenant and its domain."""

from __future__ import annotations

from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    """A tenant."""


class Domain(DomainMixin):
    """An address of a tenant."""
