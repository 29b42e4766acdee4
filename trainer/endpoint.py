"""A server that speaks OpenAI's API, through the official client, and what can go wrong with it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import openai
from openai import AsyncOpenAI, OpenAI

from capture.errors import ConfigError
from trainer.errors import EndpointError

MAX_RETRIES = 4  # by the client, with growing pauses: no connection, 408, 409, 429, 5xx
TIMEOUT_SECONDS = 600.0
NO_KEY = "none"  # the client insists on one


def base_url(url: str) -> str:
    """The address as the client wants it, with or without its ``/v1`` as given."""
    return f"{url.rstrip('/').removesuffix('/v1')}/v1"


def open_endpoint(url: str, api_key: str | None = None) -> OpenAI:
    """A client of a server; nothing is asked yet.

    Args:
        url: Such as ``http://127.0.0.1:8000``.
        api_key: If the server wants one.
    """
    return OpenAI(
        base_url=base_url(url),
        api_key=api_key or NO_KEY,
        max_retries=MAX_RETRIES,
        timeout=TIMEOUT_SECONDS,
    )


def open_async_endpoint(url: str, api_key: str | None = None) -> AsyncOpenAI:
    """The same for many requests at a time."""
    return AsyncOpenAI(
        base_url=base_url(url),
        api_key=api_key or NO_KEY,
        max_retries=MAX_RETRIES,
        timeout=TIMEOUT_SECONDS,
    )


async def check_models(client: AsyncOpenAI, url: str, wanted: Collection[str]) -> None:
    """See that a server is there and has some models.

    Raises:
        ConfigError: If it lacks one, or refuses the key.
        EndpointError: If it does not answer.
    """
    with endpoint_errors(url):
        names = [model.id async for model in client.models.list()]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"{url} has no route {name!r}, only {', '.join(names) or 'none'}")


def only_model(client: OpenAI, url: str) -> str:
    """The model that a server serves.

    Raises:
        ConfigError: If it serves several, or none.
        EndpointError: If it does not answer.
    """
    with endpoint_errors(url):
        names = [model.id for model in client.models.list()]
    if len(names) != 1:
        raise ConfigError(
            f"{url} serves {len(names)} models ({', '.join(names)}), expected one: give the "
            "address of the engine itself, not of a gateway"
        )
    return names[0]


@contextmanager
def endpoint_errors(url: str) -> Iterator[None]:
    """Say what is wrong with a server's answer and what to do.

    Raises:
        ConfigError: If the key, the model or the request is not what the server takes.
        EndpointError: If there is no server, or it fails.
    """
    try:
        yield
    except openai.OpenAIError as error:
        raise explained(error, url) from error


def explained(error: openai.OpenAIError, url: str) -> Exception:
    """The error of ours for one of the client's; never with a prompt's words."""
    if isinstance(error, openai.APIStatusError):
        return _refusal(error, url)
    if isinstance(error, openai.APIConnectionError):
        return EndpointError(
            f"{url}: no answer, after {MAX_RETRIES} retries too: see that the server runs there "
            "and try again"
        )
    return EndpointError(f"{url}: not an answer of OpenAI's API ({type(error).__name__})")


def _refusal(error: openai.APIStatusError, url: str) -> Exception:
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return ConfigError(
            f"{url} refuses the key ({error.status_code}): set OPENAI_API_KEY to one that it knows"
        )
    if isinstance(error, openai.NotFoundError):
        return ConfigError(f"{url} does not know that model or path: {_words(error)}")
    if isinstance(error, openai.RateLimitError):
        return EndpointError(
            f"{url} limits the rate, after {MAX_RETRIES} retries too: ask with less at a time, "
            "or again later"
        )
    return EndpointError(f"{url} answers {error.status_code}: {_words(error)}")


def _words(error: openai.APIStatusError) -> str:
    """The server's own message."""
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return str(said) if said else type(error).__name__
