"""The ``[gateway]`` table of ``retort.toml``: listeners, routes, and the engines behind them."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from capture.config import read_table
from capture.errors import ConfigError
from gateway.bounds import Bounds
from gateway.cascade import CascadeConfig, check_cascades
from gateway.guards import Guards
from gateway.health import PoolConfig
from gateway.keys import Quota
from gateway.timeouts import Timeouts

MAX_PORT = 65535
Share = Annotated[float, Field(ge=0, le=1)]


class EngineConfig(BaseModel):
    """How the engines of a route are started.

    Attributes:
        replicas: How many engines serve the model side by side.
        args: Further flags of vLLM's server.
        env: Environment overrides; ``{replica}`` in a value is the engine's number, from 0.
        start_timeout_seconds: Longest wait for the first generation.
        sleep_mode: Whether they sleep while another takes their place; vLLM's can, on GPUs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: Annotated[int, Field(ge=1)] = 1
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    start_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    sleep_mode: bool = False


class RolloutConfig(BaseModel):
    """How a candidate is tried.

    Attributes:
        mirror_share: Share of the incumbent's answers that the candidate is asked for too.
        mirror_concurrency: Most mirrored requests under way at once.
        mirror_queue_bytes: Most mirrored requests that wait, with their answers; further ones are
            skipped and counted.
        steps: Shares of real traffic the candidate gets, one canary step after the other.
        drain_seconds: How long an engine that has to make room may take for what it has begun.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mirror_share: Share = 1.0
    mirror_concurrency: Annotated[int, Field(ge=1)] = 4
    mirror_queue_bytes: Annotated[int, Field(ge=1)] = 32 * 1024 * 1024
    steps: tuple[Share, ...] = (0.01, 0.05, 0.25)
    drain_seconds: Annotated[float, Field(gt=0)] = 60.0

    @model_validator(mode="after")
    def _rising(self) -> "RolloutConfig":
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps is {list(self.steps)}, expected shares that rise")
        return self


class RouteConfig(BaseModel):
    """One model name that apps ask for, and who answers it.

    Attributes:
        model: Folder of the model to serve in an engine of our own.
        url: Address of an engine that runs elsewhere, or of several, instead of ``model``.
        capture: ``full`` keeps every exchange's text and distributions (an engine at ``url`` must
            have been started with the tap); ``wire`` too, but takes them from the answers' own
            logprobs, at most 20 per token, where the engine names tokens by id; ``text`` keeps
            only the text, ``off`` neither: only when it was, how long it took and how it ended.
            A request can ask for less.
        tokenizer: Folder of the tokenizer of an engine at ``url``, so that ``wire`` can name it,
            and knows tokens that the engine names by their text.
        promise: When an exchange's row is safe, relative to the client's last byte.
        pool: How its engines share its requests, and what becomes of one that fails.
        timeouts: How long they may take.
        cascade: Which route answers instead of an answer that its model is unsure of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path | None = None
    url: str | tuple[str, ...] | None = None
    capture: Literal["full", "wire", "text", "off"] = "full"
    tokenizer: Path | None = None
    promise: Literal["durable", "strict", "best_effort"] = "durable"
    engine: EngineConfig = EngineConfig()
    pool: PoolConfig = PoolConfig()
    timeouts: Timeouts = Timeouts()
    rollout: RolloutConfig = RolloutConfig()
    guards: Guards = Guards()
    cascade: CascadeConfig | None = None

    @field_validator("url")
    @classmethod
    def _addresses(cls, url: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if url is None or isinstance(url, str):
            return url and _address(url)
        if not url or len(set(url)) < len(url):
            raise ValueError("expected addresses that differ, at least one")
        return tuple(map(_address, url))

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of engines that run elsewhere."""
        return (self.url,) if isinstance(self.url, str) else self.url or ()

    @model_validator(mode="after")
    def _one_source(self) -> "RouteConfig":
        if (self.model is None) == (self.url is None):
            raise ValueError("a route needs either model (a folder) or url (a running engine)")
        if self.tokenizer is not None and (self.url is None or self.capture != "wire"):
            raise ValueError("tokenizer is only for url with capture = 'wire'; remove it")
        if self.cascade is not None and self.capture == "wire":
            raise ValueError("cascade and capture = 'wire' read the same field; remove one of them")
        return self


def _address(url: str) -> str:
    """An engine's address, without the slash at its end."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError(f"{url!r} is no address such as http://127.0.0.1:8000")
    if parts.path.rstrip("/").endswith("/v1"):
        raise ValueError(f"expected an address without /v1, which requests bring along: {url!r}")
    return url.rstrip("/")


class TenantConfig(BaseModel):
    """What all keys of a tenant may ask together; None where there is no limit.

    Attributes:
        requests_per_minute: Requests.
        tokens_per_minute: Prompt and completion tokens.
        token_budget: Tokens in all, ever.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Annotated[int, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[int, Field(gt=0)] | None = None
    token_budget: Annotated[int, Field(gt=0)] | None = None


class TracingConfig(BaseModel):
    """OpenTelemetry spans of exchanges, sent by OTLP over HTTP.

    Attributes:
        endpoint: Where to, such as ``http://127.0.0.1:4318/v1/traces``.
        service: Name of this service.
        share: Share of exchanges whose client says nothing of tracing that get a span.
        content: Whether spans hold what was asked and answered, as far as the log may.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str
    service: str = "retort"
    share: Share = 1.0
    content: bool = False


class GatewayConfig(BaseModel):
    """The whole table.

    Attributes:
        listen: Address for apps, ``host:port``.
        admin_listen: Address for operators, ``host:port``; needs the admin key.
        run_dir: Folder for engine logs, the admin key and the default state store.
        state_url: SQLAlchemy URL of the state store; default: SQLite in ``run_dir``.
        max_body_bytes: Largest request body that is accepted.
        max_header_bytes: Largest request line and headers together.
        request_timeout_seconds: Longest time that a request may take to arrive.
        auth: ``keys`` asks every request for an API key, ``none`` none of them; default: ``keys``
            unless ``listen`` is an address that only this machine can reach.
        access_log: File for one line of JSON per request, ``-`` for stdout; none by default.
        tracing: OpenTelemetry spans, if any.
        tenants: Name to quotas, for those that have any.
        bounds: How large a body's parts may be.
        routes: Model name to route.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = "127.0.0.1:8080"
    admin_listen: str = "127.0.0.1:8081"
    run_dir: Path = Path("run")
    state_url: str | None = None
    max_body_bytes: Annotated[int, Field(gt=0)] = 32 * 1024 * 1024
    max_header_bytes: Annotated[int, Field(gt=0)] = 65_536
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    auth: Literal["keys", "none"] | None = None
    access_log: Path | None = None
    tracing: TracingConfig | None = None
    tenants: dict[str, TenantConfig] = Field(default_factory=dict)
    bounds: Bounds = Bounds()
    routes: Annotated[dict[str, RouteConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _addresses(self) -> "GatewayConfig":
        for address in (self.listen, self.admin_listen):
            host_and_port(address)
        if self.listen == self.admin_listen:
            raise ValueError(f"listen and admin_listen are both {self.listen}, expected two ports")
        check_cascades({name: route.cascade for name, route in self.routes.items()})
        return self

    @property
    def asks_for_keys(self) -> bool:
        """Whether every request must show an API key."""
        if self.auth is not None:
            return self.auth == "keys"
        return is_open(self.listen)

    @property
    def quotas(self) -> dict[str, Quota]:
        """What tenants may ask, by name."""
        return {name: Quota(**tenant.model_dump()) for name, tenant in self.tenants.items()}

    @property
    def state_store(self) -> str:
        """The state store's URL, the default filled in."""
        return self.state_url or f"sqlite:///{self.run_dir / 'state.db'}"


def is_open(address: str) -> bool:
    """Whether others than this machine can reach an address."""
    host = host_and_port(address)[0].strip("[]")
    return host != "localhost" and not (is_address(host) and ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether a host is given by number."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def host_and_port(address: str) -> tuple[str, int]:
    """Split ``host:port``.

    Raises:
        ValueError: If it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
        raise ValueError(f"{address!r} is not host:port, for example 127.0.0.1:8080")
    return host, int(port)


def load(path: Path) -> GatewayConfig:
    """Read ``[gateway]``; relative folders are taken from the file's own folder.

    Raises:
        ConfigError: If the file is unreadable, or a key or value in it is wrong.
    """
    config = read_table(path, "gateway", GatewayConfig)
    home = path.resolve().parent
    routes = {name: _placed(route, home) for name, route in config.routes.items()}
    changes: dict[str, object] = {"run_dir": home / config.run_dir, "routes": routes}
    if config.access_log is not None and str(config.access_log) != "-":
        changes["access_log"] = home / config.access_log
    return config.model_copy(update=changes)


def check_folders(config: GatewayConfig) -> None:
    """Look for the models and tokenizers that are to be served with.

    Raises:
        ConfigError: If a route's folder is not there, or holds no model.
    """
    for name, route in config.routes.items():
        key = f"[gateway].routes.{name}"
        if route.model is not None and not (route.model / "config.json").is_file():
            raise ConfigError(
                f"{key}.model is {route.model}: no config.json there; expected a Hugging Face "
                "model folder"
            )
        if route.tokenizer is not None and not route.tokenizer.is_dir():
            raise ConfigError(f"{key}.tokenizer is {route.tokenizer}: no such folder")


def _placed(route: RouteConfig, home: Path) -> RouteConfig:
    """A route whose folders are taken from one."""
    folders = {"model": route.model, "tokenizer": route.tokenizer}
    changes: dict[str, object] = {name: home / each for name, each in folders.items() if each}
    if route.cascade is not None:
        changes["cascade"] = route.cascade.placed(home)
    return route.model_copy(update=changes)
