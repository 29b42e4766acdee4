"""What answers a route when the gateway starts, and how deployments are started."""

import asyncio
from pathlib import Path

from capture.revision import chat_template, tokenizer_hash
from gateway.fleet import Fleet
from gateway.relay import Serving
from gateway.rollout import Rollout
from gateway.routing import Deployment
from gateway.state import StateStore
from quant.bundle import BundleError, verify_bundle


class Starter:
    """Starts deployments of routes as they are configured and as rollouts have left them."""

    def __init__(self, serving: Serving, fleet: Fleet, store: StateStore) -> None:
        self._serving = serving
        self._fleet = fleet
        self._store = store

    async def incumbent(self, route: str, known: Deployment | None = None) -> Deployment:
        """Start what answers a route: the last promoted bundle, or what is configured.

        Args:
            route: Its name.
            known: What answers it now; returned as it is if that is still right.

        Raises:
            EngineError: If its engine does not start.
            BundleError: If the bundle is not what it says it is.
        """
        config = self._serving.config.routes[route]
        live = await asyncio.to_thread(self._store.live, route)
        configured = f"{route}-external" if config.model is None else f"{route}-teacher"
        name = configured if live is None else live.rollout.candidate
        if known is not None and known.name == name:
            return known
        if live is not None:
            return await self.candidate(live.rollout)
        if config.model is not None:
            return await self._fleet.start(name, route, config.model, config, is_candidate=False)
        return self._fleet.attach(name, route, config, capture=config.capture == "full")

    async def candidate(self, rollout: Rollout) -> Deployment:
        """Verify a rollout's bundle and start it.

        Raises:
            BundleError: If the bundle is not what it says it is, or reads text differently.
            EngineError: If it does not generate.
        """
        bundle = Path(rollout.bundle)
        config = self._serving.config.routes[rollout.route]
        await asyncio.to_thread(_verify, bundle, config.model)
        return await self._fleet.start(
            rollout.candidate, rollout.route, bundle, config, is_candidate=True
        )


def _verify(bundle: Path, model: Path | None) -> None:
    if model is None:
        verify_bundle(bundle, tokenizer_hash=None)
        return
    verify_bundle(bundle, tokenizer_hash=tokenizer_hash(model))
    if chat_template(bundle) != chat_template(model):
        raise BundleError(
            f"{bundle}: its chat template is not that of {model}, so it would read other prompts; "
            "copy the route's template into the checkpoint and make the bundle again"
        )
