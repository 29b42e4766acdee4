"""The app that apps talk to: OpenAI's endpoints, health and metrics, wired to what it is given."""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import Depends, FastAPI, Request, Response
from fastapi.params import Depends as DependsOn
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import Route as Path
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.endpoints import ENDPOINTS
from gateway.errors import RouteNotFoundError
from gateway.openapi import document
from gateway.refusal import broken, explain_errors
from gateway.relay import Relay
from gateway.serving import Serving

Exposition = Callable[[], Awaitable[bytes]]  # metrics in Prometheus's text format


def create_app(serving: Serving, exposition: Exposition) -> ASGIApp:
    """Build the ASGI app; whoever calls it opens and closes what it is given."""
    relay = ServerErrorMiddleware(Relay(serving), handler=broken)
    rest = create_rest(serving, exposition)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Let the hot path go past router and middleware."""
        is_hot = scope["type"] == "http" and scope["method"] == "POST"
        handler = relay if is_hot and scope["path"] in ENDPOINTS else rest
        await handler(scope, receive, send)

    return app


def create_rest(serving: Serving, exposition: Exposition) -> FastAPI:
    """Build what is not relayed: models, health, metrics, and every refusal."""
    app = FastAPI(title="Retort", docs_url=None, redoc_url=None, openapi_url=None)
    explain_errors(app)
    for path in ENDPOINTS:  # so that other methods are told which one is right
        app.router.routes.append(Path(path, Relay(serving), methods=["POST"]))

    async def admit(request: Request) -> None:
        serving.gate.admit(dict(request.scope["headers"]))

    _add_models(app, serving, [Depends(admit)])
    _add_status(app, serving)

    @app.get("/openapi.json", dependencies=[Depends(admit)])
    async def described_api() -> JSONResponse:
        asks_for_keys = serving.gate.ring is not None
        routes = sorted(serving.config.routes)
        return JSONResponse(document(routes, serving.gate.bounds, asks_for_keys=asks_for_keys))

    @app.get("/metrics", dependencies=[Depends(admit)])
    async def prometheus() -> Response:
        return Response(await exposition(), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_models(app: FastAPI, serving: Serving, admitted: Sequence[DependsOn]) -> None:

    @app.get("/v1/models", dependencies=admitted)
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [described(name) for name in serving.table.routes]}

    @app.get("/v1/models/{name:path}", dependencies=admitted)
    async def model(name: str) -> dict[str, object]:
        if name not in serving.table.routes:
            raise RouteNotFoundError(f"model {name!r} does not exist", "model")
        return described(name)


def _add_status(app: FastAPI, serving: Serving) -> None:

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        waiting = sorted(serving.config.routes.keys() - serving.table.answering)
        body = {"status": "waiting" if waiting else "ready", "waiting": waiting}
        return JSONResponse(body, 503 if waiting else 200)


def described(name: str) -> dict[str, object]:
    """A route as OpenAI's list of models shows it."""
    return {"id": name, "object": "model", "owned_by": "retort", "created": 0}
