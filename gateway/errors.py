"""What can go wrong while serving, with the status and OpenAI error body each maps to.

GatewayError
    RequestError         400  a body that is not what the endpoint takes
    BodyTooLargeError    413
    RouteNotFoundError   404  a model name that no route has
    NotReadyError        503  the route's engine is not up
    OverloadedError      503  every engine of the route is busy
    ClientLeftError      499  a client that did not wait; nobody reads this
    CaptureFullError     503  the log takes no more rows, and the log comes first
    UpstreamError        502  the engine broke off
    UpstreamTimeoutError 504  the engine stayed silent
    PortTakenError            an address that cannot be bound
    HandoverError             no gateway to take over from
    WorkerLostError      503  another process of this gateway has ended
    DemoError                 a step of the demo that failed
    DoctorError               something that needs attention
    AdminKeyError        401
    ApiKeyError          401  no valid API key
    RateLimitError       429  a minute's quota is used up
    BudgetError          429  a budget is used up
    RolloutError         409  a move the rollout's state does not allow
    StateConflictError   409  another writer was first
    RolloutNotFoundError 404
    KeyNotFoundError     404
    StateStoreError      503  the state store cannot be opened, read or written
"""

from typing import ClassVar


class GatewayError(Exception):
    """Base of this package's errors.

    Attributes:
        status: HTTP status of the answer.
        type: OpenAI error type.
        code: OpenAI error code.
        retry_after_seconds: When to try again, where trying again may help.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retry_after_seconds: float | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def body(self) -> dict[str, dict[str, str | None]]:
        """The OpenAI error body."""
        error = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


class RequestError(GatewayError):
    """Raised when a request's body is malformed."""

    status = 400
    type = "invalid_request_error"


class BodyTooLargeError(RequestError):
    """Raised when a request's body exceeds the configured size."""

    status = 413
    code = "body_too_large"


class RouteNotFoundError(RequestError):
    """Raised when no route has the model name that was asked for."""

    status = 404
    code = "model_not_found"


class NotReadyError(GatewayError):
    """Raised when a route's engine does not serve at the moment."""

    status = 503
    code = "engine_not_ready"
    retry_after_seconds = 10  # engines take that long to start, or longer


class OverloadedError(NotReadyError):
    """Raised when every engine of a route has as much to do as it may."""

    code = "engine_overloaded"
    retry_after_seconds = 1


class ClientLeftError(GatewayError):
    """Raised when a client leaves before its request has gone to an engine."""

    status = 499
    type = "invalid_request_error"
    code = "client_left"


class CaptureFullError(GatewayError):
    """Raised when the spool's buffer is full and requests are to be refused then."""

    status = 503
    code = "capture_full"
    retry_after_seconds = 1


class UpstreamError(GatewayError):
    """Raised when an engine ends a connection before its answer is whole."""

    status = 502
    code = "engine_failed"


class UpstreamTimeoutError(GatewayError):
    """Raised when an engine stays silent for longer than it may."""

    status = 504
    code = "engine_timeout"


class PortTakenError(GatewayError):
    """Raised when one of our listeners cannot bind its address."""


class HandoverError(GatewayError):
    """Raised when there is no gateway to take over from."""


class WorkerLostError(GatewayError):
    """Raised when the process that was asked for something has ended."""

    status = 503
    code = "worker_lost"
    retry_after_seconds = 1


class DemoError(GatewayError):
    """Raised when a step of the demo fails; carries what the step said."""


class DoctorError(GatewayError):
    """Raised when something of this installation is ill."""


class AdminKeyError(GatewayError):
    """Raised when an operator's request comes without the admin key."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ApiKeyError(GatewayError):
    """Raised when a request shows no valid API key."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class RateLimitError(GatewayError):
    """Raised when a key or its tenant has used up what it may ask in a minute."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BudgetError(GatewayError):
    """Raised when a key or its tenant has used up its tokens."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class RolloutError(GatewayError):
    """Raised when a rollout's state does not allow what was asked."""

    status = 409
    type = "invalid_request_error"
    code = "rollout_conflict"


class StateConflictError(RolloutError):
    """Raised when another writer changed the state first."""

    code = "state_conflict"


class RolloutNotFoundError(RolloutError):
    """Raised when there is no rollout of that id."""

    status = 404
    code = "rollout_not_found"


class KeyNotFoundError(GatewayError):
    """Raised when there is no API key of that id."""

    status = 404
    code = "key_not_found"


class StateStoreError(GatewayError):
    """Raised when the state store cannot be opened, read or written; nothing was changed."""

    status = 503
    code = "state_store_failed"
