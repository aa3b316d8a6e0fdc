"""Errors as OpenAI's clients expect them: a status, and a JSON body with message, type, param and code."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from promptstore.errors import (
    ConflictError,
    CorruptError,
    IncompatibleModelError,
    InvalidInputError,
    NotFoundError,
    NotServingError,
    OverloadedError,
    PromptStoreError,
    StoreUnavailableError,
    UntrustedError,
)
from promptstore.runtime.memory import is_out_of_memory

logger = logging.getLogger(__name__)

_BAD_REQUEST = "invalid_request_error"
_SERVER = "server_error"
# The first entry whose class matches decides.
_ANSWERS: tuple[tuple[type[PromptStoreError], int, str, str], ...] = (
    (InvalidInputError, 400, _BAD_REQUEST, "invalid_input"),
    (NotFoundError, 404, _BAD_REQUEST, "model_not_found"),
    (IncompatibleModelError, 409, _BAD_REQUEST, "incompatible_model"),
    (ConflictError, 409, _BAD_REQUEST, "conflict"),
    (OverloadedError, 429, "rate_limit_error", "overloaded"),
    (NotServingError, 503, _SERVER, "not_serving"),
    (StoreUnavailableError, 503, _SERVER, "store_unavailable"),
    (CorruptError, 503, _SERVER, "corrupt"),
    (UntrustedError, 503, _SERVER, "untrusted"),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout", 429: "rate_limit_error"}
RETRY_HEADER = "retry-after"
RETRY_AFTER_S = "1"
CHALLENGE_HEADER = "www-authenticate"


class RequestRefusedError(Exception):
    """A request turned away before any work. status: of HTTP; code: for programs; message: for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def error_body(status: int, code: str, message: str, *, kind: str | None = None, param: str | None = None) -> Any:
    """The JSON body of an error. message, param: may quote what was sent, characters that UTF-8 lacks included."""
    default = _SERVER if status >= 500 else _BAD_REQUEST
    said = {"message": _writable(message), "type": kind or _TYPES.get(status, default)}
    return {"error": {**said, "param": None if param is None else _writable(param), "code": code}}


def _writable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def error_response(status: int, body: Any) -> JSONResponse:
    return JSONResponse(body, status, failure_headers(status))


def failure_headers(status: int) -> dict[str, str]:
    match status:
        case 401:
            return {CHALLENGE_HEADER: "Bearer"}
        case 429 | 503:
            return {RETRY_HEADER: RETRY_AFTER_S}
        case _:
            return {}


def describe(error: Exception) -> tuple[int, Any]:
    """Status and body for an error of ours, or 500 without its text, which may hold what is not for strangers."""
    if isinstance(error, RequestRefusedError):
        return error.status, error_body(error.status, error.code, str(error))
    for kind, status, type_, code in _ANSWERS:
        if isinstance(error, kind):
            return status, error_body(status, code, str(error), kind=type_)
    if is_out_of_memory(error):
        logger.error("out of memory, also on the second try", exc_info=error)
        return 503, error_body(503, "out_of_memory", "there is no memory for this input now; repeat it in a moment")
    logger.error("request failed", exc_info=error)
    return 500, error_body(500, "internal", "the server failed to answer; its log says why, under this request's id")


def _unreadable(why: str) -> JSONResponse:
    """What a body is told that is no JSON, or none that can be read."""
    return error_response(400, error_body(400, "invalid_request", f"body: cannot be read as JSON: {why}"))


def install(app: FastAPI) -> None:
    """Makes every error of the app's routes answer in this form."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        status, body = describe(error)
        if isinstance(error, RequestRefusedError | OverloadedError):
            request.app.state.context.metrics.refused.labels(body["error"]["code"]).inc()
        return error_response(status, body)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert_validation = error if isinstance(error, RequestValidationError) else None
        first: Any = assert_validation.errors()[0] if assert_validation else {"loc": (), "msg": str(error)}
        if first.get("type") == "json_invalid":
            return _unreadable(f"{first['ctx']['error']} at character {first['loc'][-1]}")
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        body = error_body(400, "invalid_request", f"{param or 'body'}: {first['msg']}", param=param)
        return error_response(400, body)

    async def http(_: Request, error: Exception) -> JSONResponse:
        match error.__cause__:
            case RecursionError():
                return _unreadable("its lists and objects are nested too deeply")
            case ValueError() as cause:  # behind a semicolon, Python tells its programmer what to change
                return _unreadable(str(cause).partition(";")[0])
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = str(error.detail) if isinstance(error, HTTPException) else "failed"
        answer = error_response(status, error_body(status, detail.lower().replace(" ", "_"), detail))
        answer.headers.update((isinstance(error, HTTPException) and error.headers) or {})  # `allow`, of a 405
        return answer

    app.add_exception_handler(RequestRefusedError, refused)
    app.add_exception_handler(PromptStoreError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
