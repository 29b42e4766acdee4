"""Which deployment answers: an immutable table, swapped whole.

A swap is one assignment of a new ``RouteTable``; a request keeps the deployment it was given.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["incumbent", "candidate", "shadow"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model being served.

    Attributes:
        name: Unique among this gateway's deployments, such as ``support-teacher``.
        url: The engine's base address.
        model: Folder name or served name, for the log.
        revision: Digest of the weights, where known.
        capture: Whether its engine has the tap.
    """

    name: str
    url: str
    model: str
    revision: str | None
    capture: bool


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers one model name, and in which proportion.

    Attributes:
        incumbent: Answers by default.
        candidate: Being tried, if any.
        canary_share: Share of conversations that the candidate answers.
        mirror_share: Share of the incumbent's answers that the candidate is asked for too.
    """

    incumbent: Deployment
    candidate: Deployment | None = None
    canary_share: float = 0.0
    mirror_share: float = 0.0

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
        down: Names of deployments whose engine has ended and does not serve again yet.
    """

    routes: Mapping[str, Route]
    down: frozenset[str] = frozenset()

    def with_route(self, name: str, route: Route) -> "RouteTable":
        """Return a table with one route exchanged."""
        return replace(self, routes={**self.routes, name: route})

    def with_down(self, deployment: str) -> "RouteTable":
        """Return a table in which a deployment cannot answer."""
        return replace(self, down=self.down | {deployment})

    def with_up(self, deployment: str) -> "RouteTable":
        """Return a table in which a deployment can answer again."""
        return replace(self, down=self.down - {deployment})

    @property
    def answering(self) -> frozenset[str]:
        """Names of routes whose incumbent can answer."""
        routes = self.routes.items()
        return frozenset(name for name, r in routes if r.incumbent.name not in self.down)


def position(key: str) -> float:
    """Map a key to [0, 1), evenly and always alike."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
