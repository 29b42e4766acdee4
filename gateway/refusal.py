"""Answers that refuse: OpenAI's error body, whatever went wrong."""

import math

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from gateway.errors import GatewayError, RequestError


def refusal(error: GatewayError) -> JSONResponse:
    """The answer that an error of ours maps to."""
    seconds = error.retry_after_seconds
    headers = None if seconds is None else {"retry-after": str(math.ceil(seconds))}
    return JSONResponse(error.body(), error.status, headers)


def explain_errors(app: FastAPI) -> None:
    """Let an app answer so to our errors, to unknown paths and methods, and to a bug."""

    @app.exception_handler(GatewayError)
    async def refused(_: Request, error: GatewayError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        said = RequestError(f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(said.body(), error.status_code, error.headers)

    app.add_exception_handler(Exception, broken)


async def broken(_: Request, __: Exception) -> JSONResponse:
    """The answer to a bug of ours."""
    return refusal(GatewayError("the gateway failed; its log says why"))
