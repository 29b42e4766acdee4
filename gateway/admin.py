"""The operators' app, on its own listener and behind its own key."""

import secrets
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, JsonValue

from capture.errors import EngineError
from gateway.driver import RolloutDriver
from gateway.errors import AdminKeyError, RequestError, UpstreamError
from gateway.overview import deployments, shown
from gateway.refusal import explain_errors, refusal
from gateway.rollout import Rollout, decision_json
from quant.bundle import BundleError


class StartRequest(BaseModel):
    """Body of ``POST /admin/rollouts``."""

    model_config = ConfigDict(extra="forbid")

    route: str
    bundle: str
    replace: bool = False


class RollbackRequest(BaseModel):
    """Body of ``POST /admin/rollouts/{id}/rollback``."""

    model_config = ConfigDict(extra="forbid")

    reason: str = ""


Json = dict[str, JsonValue]


def create_admin_app(driver: RolloutDriver, key: str) -> FastAPI:
    """Build the ASGI app; every request needs ``Authorization: Bearer KEY``."""

    async def authorize(authorization: Annotated[str, Header()] = "") -> None:
        if not secrets.compare_digest(authorization.encode(), f"Bearer {key}".encode()):
            raise AdminKeyError("the admin key is missing or wrong; it is in run_dir/admin.key")

    app = FastAPI(
        title="Retort admin",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(authorize)],
    )

    explain_errors(app)
    _explain_more(app)
    _add_rollouts(app, driver)

    @app.get("/admin/deployments")
    async def answering() -> Json:
        return {"data": deployments(driver.serving.table)}

    return app


def _explain_more(app: FastAPI) -> None:
    """Explain what other packages raise, and malformed bodies."""

    @app.exception_handler(EngineError)
    async def engine_failed(_: Request, error: EngineError) -> JSONResponse:
        return refusal(UpstreamError(str(error)))

    @app.exception_handler(BundleError)
    async def bundle_refused(_: Request, error: BundleError) -> JSONResponse:
        return refusal(RequestError(str(error), "bundle"))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return refusal(RequestError(f"{where}: {first['msg']}", where))


def _add_rollouts(app: FastAPI, driver: RolloutDriver) -> None:
    def show(rollout: Rollout) -> Json:
        return shown(rollout, driver.serving.config)

    @app.post("/admin/rollouts", status_code=201)
    async def start(body: StartRequest) -> Json:
        return show(await driver.start(body.route, body.bundle, replace=body.replace))

    @app.get("/admin/rollouts")
    async def rollouts(route: str | None = None) -> Json:
        return {"data": [show(rollout) for rollout in await driver.runner.trials.rollouts(route)]}

    @app.get("/admin/rollouts/{rollout_id}")
    async def rollout(rollout_id: str) -> Json:
        return show(await driver.runner.trials.find(rollout_id))

    @app.post("/admin/rollouts/{rollout_id}/promote")
    async def promote(rollout_id: str) -> Json:
        return show(await driver.promote(rollout_id))

    @app.post("/admin/rollouts/{rollout_id}/rollback")
    async def roll_back(rollout_id: str, body: RollbackRequest) -> Json:
        return show(await driver.roll_back(rollout_id, body.reason))

    @app.get("/admin/rollouts/{rollout_id}/history")
    async def history(rollout_id: str) -> Json:
        found = await driver.runner.trials.find(rollout_id)
        return {"data": [decision_json(decision) for decision in found.history]}
