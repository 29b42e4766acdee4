"""What answers a route when the gateway starts, and how deployments are started."""

import asyncio
import logging
from pathlib import Path

from capture.errors import EngineError
from capture.revision import chat_template, context_length, tokenizer_hash
from gateway import sleep
from gateway.config import RouteConfig
from gateway.fleet import Fleet
from gateway.rollout import Rollout
from gateway.routing import Deployment
from gateway.serving import Serving
from gateway.state import StateStore
from quant.bundle import BundleError, verify_bundle

CONTEXT = "--max-model-len"
logger = logging.getLogger(__name__)


class Starter:
    """Starts deployments of routes as they are configured and as rollouts have left them."""

    def __init__(self, serving: Serving, fleet: Fleet, store: StateStore) -> None:
        self._serving = serving
        self._fleet = fleet
        self._store = store

    async def wanted(self, route: str) -> str:
        """Name of what answers a route when nothing is tried, by what is written down.

        Raises:
            StateStoreError: If the state store fails.
        """
        live = await asyncio.to_thread(self._store.live, route)
        config = self._serving.config.routes[route]
        return _configured(route, config) if live is None else live.rollout.candidate

    async def incumbent(self, route: str) -> Deployment:
        """Start what answers a route: the last promoted bundle, or what is configured.

        Raises:
            EngineError: If its engine does not start.
            BundleError: If the bundle is not what it says it is.
        """
        config = self._serving.config.routes[route]
        live = await asyncio.to_thread(self._store.live, route)
        if live is not None:
            return await self.candidate(live.rollout)
        name = _configured(route, config)
        if config.model is not None:
            return await self._fleet.start(name, route, config.model, config, is_candidate=False)
        await self._wake(route, config)
        return self._fleet.attach(name, route, config, capture=config.capture == "full")

    async def _wake(self, route: str, config: RouteConfig) -> None:
        """Wake engines that run elsewhere, if we may have sent them to sleep."""
        rollouts = await asyncio.to_thread(self._store.rollouts, route)
        if not rollouts or not rollouts[-1].rollout.replaces:
            return
        for url in config.urls:
            try:
                await sleep.wake_up(url)
            except EngineError as error:  # it may be started anew just now
                logger.warning("%s", error)

    async def candidate(self, rollout: Rollout) -> Deployment:
        """Verify a rollout's bundle and start it.

        Raises:
            BundleError: If the bundle is not what it says it is, or reads text differently.
            EngineError: If it does not generate.
        """
        deployment = await self.placed_candidate(rollout)
        try:
            await self._fleet.bring_up(deployment.name)
        except BaseException:
            await asyncio.shield(self._fleet.stop(deployment.name))
            raise
        return deployment

    async def placed_candidate(self, rollout: Rollout) -> Deployment:
        """Verify a rollout's bundle; its engine is not started yet.

        Raises:
            BundleError: If the bundle is not what it says it is, or reads text differently; if it
                is not live yet and refuses what its route's model takes.
        """
        bundle = Path(rollout.bundle)
        config = self._serving.config.routes[rollout.route]
        await asyncio.to_thread(verify, bundle, config)
        if rollout.state != "live":  # or it answers already
            await asyncio.to_thread(check_context, bundle, config)
        return await self._fleet.place(
            rollout.candidate, rollout.route, bundle, config, is_candidate=True
        )

    async def placed_incumbent(self, route: str) -> Deployment:
        """What answers a route when nothing is tried, though its engine is not started yet.

        Raises:
            BundleError: If it is a promoted bundle, and not what it says it is.
        """
        config = self._serving.config.routes[route]
        live = await asyncio.to_thread(self._store.live, route)
        if live is not None:
            return await self.placed_candidate(live.rollout)
        name = _configured(route, config)
        if config.model is not None:
            return await self._fleet.place(name, route, config.model, config, is_candidate=False)
        return self._fleet.attach(name, route, config, capture=config.capture == "full")


def _configured(route: str, config: RouteConfig) -> str:
    """Name of the deployment that the configuration asks for."""
    return f"{route}-external" if config.model is None else f"{route}-teacher"


def verify(bundle: Path, config: RouteConfig) -> None:
    """See that a bundle is whole, and reads what its route's model reads.

    Raises:
        BundleError: If it is not what it says it is, or reads text differently.
    """
    model = config.model
    if model is None:
        verify_bundle(bundle, tokenizer_hash=None)
        return
    verify_bundle(bundle, tokenizer_hash=tokenizer_hash(model))
    if chat_template(bundle) != chat_template(model):
        raise BundleError(
            f"{bundle}: its chat template is not that of {model}, so it would read other prompts; "
            "copy the route's template into the checkpoint and make the bundle again"
        )


def check_context(bundle: Path, config: RouteConfig) -> None:
    """See that a bundle takes requests as long as its route's model does.

    Raises:
        BundleError: If it refuses longer ones.
    """
    model = config.model
    if model is None:
        return
    is_told = any(arg.replace("_", "-").startswith(CONTEXT) for arg in config.engine.args)
    ours, theirs = context_length(bundle), context_length(model)
    if not is_told and ours is not None and theirs is not None and ours < theirs:
        raise BundleError(
            f"{bundle} takes at most {ours} tokens and would refuse longer requests that {model}, "
            f'which takes {theirs}, answers; if there are none, put "{CONTEXT}", "{ours}" into '
            "engine.args of the route and restart the gateway"
        )
