"""The route table in another process: described where it is made, rebuilt where it is used."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from gateway.config import RouteConfig
from gateway.pool import Pool
from gateway.prober import probing
from gateway.routing import Deployment, Route, RouteTable


class DescribedDeployment(NamedTuple):
    """A deployment without what belongs to one process.

    Attributes:
        route: Model name that its engines know.
        urls: Its engines.
        ended: Those whose process has ended.
        is_serving: Whether any of them has proven that it serves.
    """

    name: str
    route: str
    model: str
    revision: str | None
    capture: bool
    urls: tuple[str, ...]
    ended: frozenset[str]
    is_serving: bool


class DescribedRoute(NamedTuple):
    """A route, its deployments by name."""

    incumbent: str
    candidate: str | None
    canary_share: float
    mirror_share: float
    is_held: bool


class Described(NamedTuple):
    """A route table that can be sent."""

    deployments: tuple[DescribedDeployment, ...]
    routes: Mapping[str, DescribedRoute]


def describe(table: RouteTable) -> Described:
    """Describe a table as it is now."""
    deployments = {
        deployment.name: _describe(deployment, name)
        for name, route in table.routes.items()
        for deployment in (route.incumbent, route.candidate)
        if deployment is not None
    }
    routes = {
        name: DescribedRoute(
            route.incumbent.name,
            None if route.candidate is None else route.candidate.name,
            route.canary_share,
            route.mirror_share,
            route.is_held,
        )
        for name, route in table.routes.items()
    }
    return Described(tuple(deployments.values()), routes)


def _describe(deployment: Deployment, route: str) -> DescribedDeployment:
    members = deployment.pool.members
    return DescribedDeployment(
        name=deployment.name,
        route=route,
        model=deployment.model,
        revision=deployment.revision,
        capture=deployment.capture,
        urls=tuple(member.url for member in members),
        ended=frozenset(member.url for member in members if member.state == "down"),
        is_serving=deployment.pool.is_serving,
    )


class Replica:
    """Deployments of a described table, with pools and probes of this process's own.

    A deployment that stays keeps its pool, and what that knows of its engines.
    """

    def __init__(self) -> None:
        self._deployments: dict[str, Deployment] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}

    def take(self, described: Described, configs: Mapping[str, RouteConfig]) -> RouteTable:
        """Rebuild a table.

        Args:
            described: As it was sent.
            configs: How the engines of each route share requests.
        """
        wanted = {deployment.name: deployment for deployment in described.deployments}
        for name in self._deployments.keys() - wanted.keys():
            del self._deployments[name]
            self._probes.pop(name).cancel()
        for name, told in wanted.items():
            if name not in self._deployments:
                self._add(told, configs[told.route])
            for member in self._deployments[name].pool.members:
                has_ended = member.url in told.ended
                if has_ended != (member.state == "down"):
                    self._deployments[name].pool.set_up(member.url, is_up=not has_ended)
        return RouteTable({name: self._route(route) for name, route in described.routes.items()})

    def _add(self, told: DescribedDeployment, config: RouteConfig) -> None:
        pool = Pool(told.urls, config.pool, "serving" if told.is_serving else "ejected")
        self._deployments[told.name] = Deployment(
            told.name, pool, told.model, told.revision, told.capture
        )
        self._probes[told.name] = asyncio.create_task(probing(pool, told.route))

    def _route(self, told: DescribedRoute) -> Route:
        incumbent = self._deployments[told.incumbent]
        candidate = None if told.candidate is None else self._deployments[told.candidate]
        return Route(
            incumbent, candidate, told.canary_share, told.mirror_share, is_held=told.is_held
        )

    def pools(self) -> Mapping[str, Pool]:
        """The pool of each deployment."""
        return {name: deployment.pool for name, deployment in self._deployments.items()}

    async def close(self) -> None:
        """Stop probing."""
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)
