"""What the gateway offers, as OpenAPI: its endpoints, what they need at least, and how they fail.

Engines take many more fields than are named here; the gateway passes them on.
"""

from collections.abc import Mapping, Sequence

from gateway.bounds import Bounds
from gateway.endpoints import ENDPOINTS

Schema = dict[str, object]
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"oneOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1}]}
ERRORS: Mapping[int, str] = {
    400: "The request is malformed, too large somewhere, or says what its key must not.",
    401: "No valid API key.",
    404: "No such model.",
    413: "The body is too large.",
    429: "A quota or budget is used up.",
    500: "The engine failed.",
    502: "The engine broke off.",
    503: "No engine serves at the moment; retry.",
    504: "The engine took too long.",
}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


def document(routes: Sequence[str], bounds: Bounds, *, asks_for_keys: bool) -> Schema:
    """The whole document.

    Args:
        routes: Names of models.
        bounds: How large a body's parts may be.
        asks_for_keys: Whether every request must show one.
    """
    model: Schema = {"type": "string", "enum": [*routes]}
    paths: Schema = {path: {"post": _asking(path, model, bounds)} for path in ENDPOINTS}
    paths["/v1/models"] = {"get": _reading("Every model.")}
    paths["/v1/models/{model}"] = {
        "get": {
            **_reading("One model."),
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": model}],
        }
    }
    whole: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "Retort", "version": "1", "description": "An OpenAI-compatible gateway."},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR}},
    }
    if asks_for_keys:
        scheme = {"type": "http", "scheme": "bearer"}
        whole["components"] = {"schemas": {"Error": ERROR}, "securitySchemes": {"key": scheme}}
        whole["security"] = [{"key": []}]
    return whole


def _asking(path: str, model: Schema, bounds: Bounds) -> Schema:
    content = {"application/json": {"schema": _body(path, model, bounds)}}
    answer: Schema = {"application/json": {"schema": {"type": "object"}}}
    if ENDPOINTS[path].generates:
        answer["text/event-stream"] = {"schema": TEXT}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "The engine's answer.", "content": answer},
            **_errors(),
        },
    }


def _reading(description: str) -> Schema:
    answer = {"application/json": {"schema": {"type": "object"}}}
    return {"responses": {"200": {"description": description, "content": answer}, **_errors()}}


def _errors() -> Schema:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": why, "content": content} for status, why in ERRORS.items()}


def _body(path: str, model: Schema, bounds: Bounds) -> Schema:
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": TEXT},
    }
    messages = {"type": "array", "items": message, "minItems": 1, "maxItems": bounds.max_messages}
    tokens = {"type": "integer", "minimum": 1, "maximum": bounds.max_tokens}
    needed: Mapping[str, Schema] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": TEXTS},
        "/v1/responses": {"input": TEXT},
        "/v1/messages": {"messages": messages, "max_tokens": tokens},
        "/v1/messages/count_tokens": {"messages": messages},
        "/v1/embeddings": {"input": TEXTS},
        "/tokenize": {"prompt": TEXT},
        "/detokenize": {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    }
    properties: Schema = {"model": model, **needed[path]}
    required = list(properties)
    if ENDPOINTS[path].generates:
        properties |= {
            "stream": {"type": "boolean"},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "max_tokens": tokens,
        }
    return {"type": "object", "required": required, "properties": properties}
