"""All routes, the hottest first: the router tries them in this order."""

from __future__ import annotations

from typing import Final

from muster_gateway import (
    routes_agents,
    routes_alerts,
    routes_data,
    routes_events,
    routes_keys,
    routes_plans,
    routes_policy,
    routes_recoveries,
    routes_results,
    routes_service,
    routes_tasks,
)
from muster_gateway.table import Route

ROUTES: Final[tuple[Route, ...]] = (
    *routes_tasks.ROUTES,
    *routes_results.ROUTES,
    *routes_data.ROUTES,
    *routes_agents.ROUTES,
    *routes_alerts.ROUTES,
    *routes_events.ROUTES,
    *routes_keys.ROUTES,
    *routes_plans.ROUTES,
    *routes_policy.ROUTES,
    *routes_recoveries.ROUTES,
    *routes_service.ROUTES,
)
