"""The app that apps talk to: OpenAI's endpoints, health and metrics, wired to what it is given."""

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.routing import Route as Path

from gateway.metrics import Metrics
from gateway.relay import Relay, Serving

RELAYED = ("/v1/chat/completions", "/v1/completions")


def create_app(serving: Serving, metrics: Metrics) -> FastAPI:
    """Build the ASGI app; whoever calls it opens and closes what it is given."""
    app = FastAPI(title="Retort", docs_url=None, redoc_url=None, openapi_url=None)
    for path in RELAYED:
        app.router.routes.append(Path(path, Relay(serving), methods=["POST"]))

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        data = [
            {"id": name, "object": "model", "owned_by": "retort", "created": 0}
            for name in serving.table.routes
        ]
        return {"object": "list", "data": data}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        waiting = sorted(set(serving.config.routes) - set(serving.table.routes))
        body = {"status": "waiting" if waiting else "ready", "waiting": waiting}
        return JSONResponse(body, 503 if waiting else 200)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app
