"""Which answers a route gives, for the interface's own description: statuses, bodies and headers."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from promptstore.core.digest import DIGEST_PATTERN
from promptstore.core.name import NAME_PATTERN
from promptstore.core.ref import DIGEST_PREFIX
from promptstore.serving.answers import ErrorAnswer
from promptstore.serving.bodies import ALIAS_HEADER, DIGEST_HEADER, NO_ALIAS, VERSION_HEADER
from promptstore.serving.failures import CHALLENGE_HEADER, RETRY_HEADER, failure_headers
from promptstore.serving.middleware import REQUEST_ID, REQUEST_ID_HEADER

Responses = dict[int | str, dict[str, Any]]

_WHY = {
    400: "The request does not fit this interface, or the task.",
    401: "No known key; only where keys are in use.",
    403: "The key lacks the scope.",
    404: "No such task, version or alias, or it is not served here.",
    409: "The version is for another base model.",
    413: "The body is too large.",
    429: "The queue is full, or the caller asks too often; `retry-after` says when to repeat.",
    503: "Not now; `retry-after` says when to repeat.",
}
EVERY_REFUSAL = tuple(_WHY)


def gives(
    model: type[BaseModel] | None, *, status: int = 200, is_versioned: bool = False, content: Any = None
) -> Responses:
    """Description of an answer that is no refusal. model: of its JSON, `None` for none.

    is_versioned: its headers name the versions that answered. content: media types beside JSON.
    """
    told = {"model": model, "content": content}
    names = (*failure_headers(status), *(_VERSIONS if is_versioned else ()))
    return {status: {**{name: value for name, value in told.items() if value}, "headers": _headers(names)}}


def refusals(*statuses: int) -> Responses:
    """Descriptions of refusals for a route. The default is there so that FastAPI invents none of its own."""
    named: Responses = {
        status: {"model": ErrorAnswer, "description": _WHY[status], "headers": _headers(failure_headers(status))}
        for status in statuses
    }
    other = {"model": ErrorAnswer, "description": "Any other failure.", "headers": _headers((), maybe=(RETRY_HEADER,))}
    return {**named, "default": other}


def _headers(names: Iterable[str], maybe: Iterable[str] = ()) -> dict[str, Any]:
    """maybe: sent with some of these answers."""
    found = {name: {"required": True, **_ABOUT[name]} for name in (REQUEST_ID_HEADER, *names)}
    return {**found, **{name: {"required": False, **_ABOUT[name]} for name in maybe}}


def _listed(pattern: str) -> str:
    return f"^{pattern}(, {pattern})*$"


def _about(description: str, **schema: Any) -> Mapping[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}}


_ORDER = "in the order in which the request names them"
_VERSIONS: dict[str, Mapping[str, Any]] = {
    VERSION_HEADER: _about(
        f"The versions that answered, {_ORDER}.",
        pattern=_listed(f"{NAME_PATTERN.pattern}:[1-9][0-9]*"),
        examples=["sst2:7", "sst2:7, topic:3"],
    ),
    DIGEST_HEADER: _about(f"Their digests, {_ORDER}.", pattern=_listed(f"{DIGEST_PREFIX}{DIGEST_PATTERN.pattern}")),
    ALIAS_HEADER: _about(
        f"The aliases that they were asked for by, {_ORDER}; `{NO_ALIAS}` for one asked for by number or digest.",
        pattern=_listed(f"({NAME_PATTERN.pattern}|{NO_ALIAS})"),
        examples=["production", "production, -"],
    ),
}
_ABOUT: dict[str, Mapping[str, Any]] = {
    REQUEST_ID_HEADER: _about(
        "What the server's log has of this request: the request's own `x-request-id` if it fits, or a new one.",
        pattern=f"^{REQUEST_ID.pattern}$",
    ),
    RETRY_HEADER: _about("Seconds after which to repeat the request.", type="integer", minimum=1),
    CHALLENGE_HEADER: _about("How a key is shown.", enum=["Bearer"]),
    **_VERSIONS,
}
