"""A real HTTP server that speaks the admin API over a real state store, without any engine.

Each time a rollout is read, 250 mirrored requests and as many answers of clients come in: good
ones, or wrong ones if the bundle is called "broken". Guards and moves are the real ones.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, JsonValue

from gateway.errors import AdminKeyError, GatewayError
from gateway.evidence import Count, Evidence
from gateway.guards import Guards, Stage, judge
from gateway.rollout import (
    Rollout,
    State,
    decision_json,
    promote,
    roll_back,
    rollout_json,
    transition,
)
from gateway.state import StateStore

KEY = "an admin key"
Json = dict[str, JsonValue]


class Start(BaseModel):
    route: str
    bundle: str
    replace: bool


class RollBack(BaseModel):
    reason: str


def create_app(store: StateStore) -> FastAPI:
    app = FastAPI(dependencies=[Depends(authorize)])

    @app.exception_handler(GatewayError)
    def refused(_: Request, error: GatewayError) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    add_reading(app, store)
    add_moves(app, store)
    return app


def authorize(authorization: Annotated[str, Header()] = "") -> None:
    if authorization != f"Bearer {KEY}":
        raise AdminKeyError("the admin key is wrong")


def add_reading(app: FastAPI, store: StateStore) -> None:
    @app.get("/admin/rollouts")
    def rollouts(route: str | None = None) -> Json:
        return {"data": [shown(saved.rollout) for saved in store.rollouts(route)]}

    @app.get("/admin/rollouts/{rollout_id}")
    def rollout(rollout_id: str) -> Json:
        seen, version = store.load(rollout_id)
        if seen.is_active:
            seen = replace(seen, evidence=seen.evidence + observed(seen.bundle))
            stage: Stage = "live" if seen.state == "rolled_back" else seen.state
            seen = transition(seen, judge(stage, seen.evidence, Guards(), seen.num_stages), now())
            store.save(seen, version)
        return shown(seen)

    @app.get("/admin/rollouts/{rollout_id}/history")
    def history(rollout_id: str) -> Json:
        return {"data": [decision_json(move) for move in store.load(rollout_id).rollout.history]}


def add_moves(app: FastAPI, store: StateStore) -> None:
    @app.post("/admin/rollouts", status_code=201)
    def start(body: Start) -> Json:
        number = len(store.rollouts()) + 1
        name = f"{body.route}-{number}"
        state: State = "watch" if body.replace else "shadow"
        steps = () if body.replace else (0.05,)
        rollout = Rollout(f"r{number}", body.route, body.bundle, name, steps, now(), state)
        store.save(rollout, 0)
        return shown(rollout)

    @app.post("/admin/rollouts/{rollout_id}/promote")
    def promoted(rollout_id: str) -> Json:
        saved, version = store.load(rollout_id)
        moved = promote(saved, now())
        store.save(moved, version)
        return shown(moved)

    @app.post("/admin/rollouts/{rollout_id}/rollback")
    def rolled_back(rollout_id: str, body: RollBack) -> Json:
        saved, version = store.load(rollout_id)
        moved = roll_back(saved, now(), body.reason)
        store.save(moved, version)
        return shown(moved)


def now() -> datetime:
    return datetime.now(UTC)


def observed(bundle: str) -> Evidence:
    agreed = Count(25 if Path(bundle).name == "broken" else 245, 250)
    return Evidence(
        failed=Count(0, 250),
        agreed=agreed,
        candidate_failed=Count(0, 250),
        candidate_valid=Count(250, 250),
        incumbent_valid=Count(250, 250),
    )


def shown(rollout: Rollout) -> Json:
    if rollout.state == "rolled_back":
        return rollout_json(rollout)
    return rollout_json(
        rollout, judge(rollout.state, rollout.evidence, Guards(), rollout.num_stages)
    )


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve on a free port of loopback; the address is ready at once, its backlog holds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        host, port = listener.getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            server.should_exit = True
            thread.join()
