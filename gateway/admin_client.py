"""A client of the admin API, for the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import quote

import httpx
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from gateway.config import host_and_port
from gateway.errors import (
    AdminKeyError,
    GatewayError,
    NotReadyError,
    RolloutError,
    RolloutNotFoundError,
    UpstreamTimeoutError,
)

Json = dict[str, JsonValue]

ERRORS: dict[int, type[GatewayError]] = {
    HTTPStatus.UNAUTHORIZED: AdminKeyError,
    HTTPStatus.NOT_FOUND: RolloutNotFoundError,
    HTTPStatus.CONFLICT: RolloutError,
}
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  # where to reach it, not to bind
ANSWER_SECONDS = 30.0


class AdminClient:
    """One method per call of the API; each returns the body as the gateway sent it.

    Every method raises ``NotReadyError`` if no gateway answers, ``UpstreamTimeoutError`` if it
    answers too late, ``AdminKeyError`` if the key is wrong, and ``RolloutError`` or another
    ``GatewayError`` with the gateway's own words if it refuses.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def start(self, route: str, bundle: str, seconds: float, *, replace: bool = False) -> Json:
        """Start a rollout; returns once the candidate answers, after ``seconds`` at most."""
        body: Json = {"route": route, "bundle": bundle, "replace": replace}
        return self._call("POST", "", body=body, seconds=seconds)

    def rollouts(self, route: str | None = None) -> Json:
        """List every rollout, or a route's."""
        return self._call("GET", "" if route is None else f"?route={quote(route, safe='')}")

    def rollout(self, rollout_id: str) -> Json:
        """Read one rollout."""
        return self._call("GET", f"/{quote(rollout_id, safe='')}")

    def promote(self, rollout_id: str) -> Json:
        """Move a rollout one stage on."""
        return self._call("POST", f"/{quote(rollout_id, safe='')}/promote")

    def roll_back(self, rollout_id: str, reason: str) -> Json:
        """Give all traffic back to the incumbent."""
        path = f"/{quote(rollout_id, safe='')}/rollback"
        return self._call("POST", path, body={"reason": reason})

    def history(self, rollout_id: str) -> Json:
        """List the moves a rollout has made, oldest first."""
        return self._call("GET", f"/{quote(rollout_id, safe='')}/history")

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Json:
        where = self._http.base_url
        try:
            response = self._http.request(
                method, f"/admin/rollouts{path}", json=body, timeout=httpx.Timeout(seconds)
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotReadyError(
                f"no gateway answers on {where}: start it with `retort serve`, or correct "
                "admin_listen in the configuration"
            ) from error
        except httpx.TimeoutException as error:
            raise UpstreamTimeoutError(
                f"the gateway on {where} did not answer within {seconds:.0f} s; `retort rollout "
                "status` shows whether it went on"
            ) from error
        except httpx.HTTPError as error:
            raise NotReadyError(f"the gateway on {where} broke off: {error}") from error
        return _body(response)


@contextmanager
def connect(address: str, key: str) -> Iterator[AdminClient]:
    """Open a client of the gateway whose ``admin_listen`` is ``address``."""
    host, port = host_and_port(address)
    # Without trust_env=False a proxy from the environment would be handed the key.
    with httpx.Client(
        base_url=f"http://{ANY_ADDRESS.get(host, host)}:{port}",
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
    ) as http:
        yield AdminClient(http)


class _Refusal(BaseModel):
    """The part of an OpenAI error that people read."""

    message: str


class _RefusalBody(BaseModel):
    """An OpenAI error body."""

    error: _Refusal


OBJECT = TypeAdapter(Json)


def _body(response: httpx.Response) -> Json:
    """Read an answer's body, or raise what it says went wrong."""
    try:
        if response.is_success:
            return OBJECT.validate_json(response.content)
        refusal = _RefusalBody.model_validate_json(response.content).error.message
    except ValidationError as error:
        raise GatewayError(
            f"{response.url} answered {response.status_code} with something that is not the admin "
            "API's: does admin_listen name a Retort gateway's admin listener?"
        ) from error
    raise ERRORS.get(response.status_code, GatewayError)(refusal)
