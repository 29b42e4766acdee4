"""Which deployment answers: an immutable table, swapped whole.

A swap is one assignment of a new ``RouteTable``; a request keeps the deployment it was given.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gateway.pool import Pool
from gateway.rollout import Rollout, canary_share

Role = Literal["incumbent", "candidate", "shadow"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model being served.

    Attributes:
        name: Unique among this gateway's deployments, such as ``support-teacher``.
        pool: Its engines.
        model: Folder name or served name, for the log.
        revision: Digest of the weights, where known.
        capture: Whether its engine's tap records what it answers to clients.
        has_tap: Whether its engine has the tap, be it for shadow requests only.
    """

    name: str
    pool: Pool
    model: str
    revision: str | None
    capture: bool
    has_tap: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers one model name, and in which proportion.

    Attributes:
        incumbent: Answers by default.
        candidate: Being tried, if any.
        canary_share: Share of conversations that the candidate answers.
        mirror_share: Share of the incumbent's answers that the candidate is asked for too.
        is_held: Whether clients wait: one engine is taking another's place.
    """

    incumbent: Deployment
    candidate: Deployment | None = None
    canary_share: float = 0.0
    mirror_share: float = 0.0
    is_held: bool = False

    @property
    def is_answering(self) -> bool:
        """Whether a request would find an engine now."""
        whole = self.candidate if self.canary_share >= 1.0 else None
        return not self.is_held and (whole or self.incumbent).pool.is_serving

    def choose(self, key: str) -> tuple[Deployment, Role]:
        """Pick the deployment for a conversation; the same key keeps its side as shares grow."""
        if self.candidate is not None and position(key) < self.canary_share:
            return self.candidate, "candidate"
        return self.incumbent, "incumbent"

    def mirrors(self, key: str) -> bool:
        """Whether an exchange the incumbent answered goes to the candidate too."""
        return self.candidate is not None and position(f"mirror {key}") < self.mirror_share


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Every route by the model name that apps ask for.

    Attributes:
        routes: The routes that have been brought up.
    """

    routes: Mapping[str, Route]

    def with_route(self, name: str, route: Route) -> "RouteTable":
        """Return a table with one route exchanged."""
        return replace(self, routes={**self.routes, name: route})

    @property
    def answering(self) -> frozenset[str]:
        """Names of routes that can answer."""
        return frozenset(name for name, route in self.routes.items() if route.is_answering)

    @property
    def deployments(self) -> list[Deployment]:
        """Every deployment once."""
        routes = self.routes.values()
        every = [d for route in routes for d in (route.incumbent, route.candidate) if d is not None]
        return list({deployment.name: deployment for deployment in every}.values())


def route_of(
    rollout: Rollout,
    incumbent: Deployment,
    candidate: Deployment,
    mirror_share: float,
    up: str | None,
) -> Route:
    """Who answers while a rollout is tried, and once it has ended.

    Args:
        rollout: As it stands.
        incumbent: What clients go back to.
        candidate: What is tried.
        mirror_share: Share of the incumbent's answers that the candidate is asked for too.
        up: Where one replaces the other, name of the one that is up, if any.
    """
    share = canary_share(rollout)
    entitled = candidate if share == 1.0 else incumbent
    is_up = up == entitled.name and rollout.state != "replacing"
    is_held = rollout.replaces and not is_up
    if not rollout.is_active:
        return Route(entitled, is_held=is_held)
    if rollout.replaces:
        return Route(incumbent, candidate, share, is_held=is_held)
    return Route(incumbent, candidate, share, mirror_share)


def position(key: str) -> float:
    """Map a key to [0, 1), evenly and always alike."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
