"""Fixtures that modules of these tests share."""

from tests.support.gateway_fixtures import gateway, options, services, worker

__all__ = ["gateway", "options", "services", "worker"]
