"""The HTTP app: routes, errors and bounds around a `ServerContext`."""

from functools import partial
from importlib.metadata import version as installed_version

from fastapi import FastAPI

from promptstore.serving import failures, routes_classify, routes_console, routes_openai, routes_state
from promptstore.serving.context import ServerContext
from promptstore.serving.gauges import read_gauges
from promptstore.serving.middleware import BodyLimits, RequestMiddleware

_DESCRIPTION = (
    "One frozen language model, any soft prompt. `model` is a prompt reference: `task`, `task@alias`, `task:number` "
    "or `task@sha256:<digest>`. Every answer names the version that gave it."
)


def create_app(context: ServerContext, *, limits: BodyLimits | None = None) -> FastAPI:
    """The app for a context whose scheduler and follower run. It starts and stops nothing itself."""
    app = FastAPI(
        title="promptstore",
        version=installed_version("promptstore"),
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = context
    context.metrics.watch(lambda: read_gauges(context))
    failures.install(app)
    for routes in (routes_classify, routes_openai, routes_state, routes_console):
        app.include_router(routes.router)
    app.add_middleware(
        RequestMiddleware,
        metrics=context.metrics,
        limits=limits or BodyLimits(),
        tracer=context.service.tracer,
        shed=partial(_shed, context),
    )
    return app


def _shed(context: ServerContext, authorization: str | None) -> None:
    """Tells callers that are known here, while the queue is full, that it is. Others learn first that they are not."""
    if context.access.knows(authorization):
        context.service.require_room()
