"""SIGHUP: what of a changed configuration takes effect while serving, and what has to wait."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import capture.config
import gateway.config
from capture.config import CaptureConfig
from capture.errors import ConfigError
from capture.familiarity import Familiarity
from capture.redaction import Redactor
from gateway.config import GatewayConfig, RouteConfig
from gateway.serving import Serving

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """The two tables that ``retort serve`` reads."""

    gateway: GatewayConfig
    capture: CaptureConfig

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Read both.

        Raises:
            ConfigError: If the file is unreadable, or a key or value in it is wrong.
        """
        return cls(gateway.config.load(path), capture.config.load(path))

    def read_trainings(self) -> dict[str, Familiarity]:
        """Read what the students of routes were trained on, where their prompts are weighed.

        Raises:
            ConfigError: If a file is not there, or none of ours.
        """
        cascades = {name: route.cascade for name, route in self.gateway.routes.items()}
        return {
            name: Familiarity.load(cascade.training)
            for name, cascade in cascades.items()
            if cascade is not None and cascade.training is not None
        }

    def differences(self, other: "Settings") -> list[str]:
        """Keys whose values differ."""
        return [
            *_differences("[gateway]", self.gateway.model_dump(), other.gateway.model_dump()),
            *_differences("[capture]", self.capture.model_dump(), other.capture.model_dump()),
        ]


class Reloader:
    """Reads the configuration again while serving."""

    def __init__(self, path: Path, started: Settings, serving: Serving) -> None:
        """Begin with the settings that the engines, spools and listeners were started with."""
        self._path = path
        self._started = started
        self._current = started
        self._serving = serving

    def reload(self) -> None:
        """Take what can be taken now and say what cannot; a bad file changes nothing."""
        try:
            read = Settings.read(self._path)
            trainings = read.read_trainings()
        except ConfigError as error:
            logger.error("configuration not reloaded, nothing was changed: %s", error)  # noqa: TRY400
            return
        taken = take(self._started, read)
        changed, waiting = taken.differences(self._current), taken.differences(read)
        self._current = taken
        self._serving.config = taken.gateway
        self._serving.trainings = trainings
        self._serving.gate.bounds = taken.gateway.bounds
        self._serving.gate.limiter.tenants = taken.gateway.quotas
        self._serving.redactor = Redactor(taken.capture.redact)
        logger.info("configuration reloaded; changed: %s", ", ".join(changed) or "nothing")
        if waiting:
            logger.warning("these changes need a restart: %s", ", ".join(waiting))


def take(started: Settings, read: Settings) -> Settings:
    """The settings that started, with what may change while they serve (pure).

    That is how large a body and its parts may be, what tenants may ask, what is redacted, and of
    each route what it captures, what it promises, how long its engines may take, when its
    teacher answers, and how its next rollout is tried. Capturing in
    a way that a route was not started for needs an engine with the tap, or a spool of its own.
    """
    routes = {
        name: _take_route(route, read.gateway.routes.get(name, route))
        for name, route in started.gateway.routes.items()
    }
    at_once = ("max_body_bytes", "bounds", "tenants")
    changes = {"routes": routes, **{name: getattr(read.gateway, name) for name in at_once}}
    return Settings(
        started.gateway.model_copy(update=changes),
        started.capture.model_copy(update={"redact": read.capture.redact}),
    )


def _take_route(started: RouteConfig, read: RouteConfig) -> RouteConfig:
    changes: dict[str, object] = {
        "promise": read.promise,
        "rollout": read.rollout,
        "guards": read.guards,
        "timeouts": read.timeouts,
        "cascade": read.cascade,
    }
    if read.capture in {"text", "off", started.capture}:
        changes["capture"] = read.capture
    return started.model_copy(update=changes)


def _differences(
    prefix: str, one: Mapping[str, object], other: Mapping[str, object]
) -> Iterator[str]:
    """Dotted names of what differs, a whole table where only one side has it."""
    for key in sorted({*one, *other}):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(f"{prefix}.{key}", left, right)
        elif left != right:
            yield f"{prefix}.{key}"
