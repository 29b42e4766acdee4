"""What operators are shown of rollouts and of who answers."""

from pydantic import JsonValue

from gateway.config import GatewayConfig
from gateway.guards import judge
from gateway.rollout import Rollout, rollout_json
from gateway.routing import RouteTable

Json = dict[str, JsonValue]


def shown(rollout: Rollout, config: GatewayConfig) -> Json:
    """A rollout as the admin API shows it, with what its guards make of it now."""
    if rollout.state == "rolled_back" or rollout.route not in config.routes:
        return rollout_json(rollout)
    guards = config.routes[rollout.route].guards
    verdict = judge(rollout.state, rollout.evidence, guards, rollout.num_stages)
    return rollout_json(rollout, verdict)


def deployments(table: RouteTable) -> list[JsonValue]:
    """Who answers each route now."""
    return [
        {
            "route": name,
            "role": role,
            "name": deployment.name,
            "up": deployment.pool.is_serving,
            "engines": [
                {"url": engine.url, "state": engine.state, "outstanding": engine.outstanding}
                for engine in deployment.pool.members
            ],
        }
        for name, route in table.routes.items()
        for role, deployment in (("incumbent", route.incumbent), ("candidate", route.candidate))
        if deployment is not None
    ]
