"""Whether the server is well, what it counts, and the operator's one command."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from promptstore.serving.answers import Health, Readiness, State
from promptstore.serving.context import Context, IsKnown, ServerContext, allow
from promptstore.serving.failures import error_response
from promptstore.serving.responses import gives, refusals
from promptstore.serving.trials import Trial

router = APIRouter(tags=["state"])


@router.get("/healthz", response_model=None, responses={**gives(Health), **gives(Health, status=503)})
async def health(context: Context) -> JSONResponse:
    """200 while the process can answer at all; otherwise restart it."""
    is_alive = context.scheduler.is_alive or context.lifecycle.is_draining
    if not is_alive:
        return error_response(503, {"status": "the engine's thread has ended"})
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=None, responses={**gives(Readiness), **gives(Readiness, status=503)})
async def readiness(context: Context, is_known: IsKnown) -> JSONResponse:
    """200 while new requests are welcome: 503 while draining, while the engine cannot answer, and while the store has
    aliases and none of them can be served. A store that cannot be reached is reported here and fails nothing.

    Why, and what is not served as the store says, is told with a key, where keys are in use.
    """
    problem = context.problem
    body = _readiness(context, problem) if is_known else {"status": "ready" if problem is None else "not ready"}
    return JSONResponse(body, 200) if problem is None else error_response(503, body)


def _readiness(context: ServerContext, problem: str | None) -> dict[str, Any]:
    # A look that hangs has not failed yet: it is told by what it leaves stale.
    is_followed = context.follower.status.problem is None and not context.is_stale
    status = problem or ("ready" if is_followed else "ready, serving what was last known")
    return {"status": status, **store_body(context)}


@router.get("/openapi.json", dependencies=[allow("infer")], include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """What this interface takes and answers."""
    described: dict[str, Any] = request.app.openapi()
    return described


@router.get(
    "/metrics",
    dependencies=[allow("admin")],
    response_class=PlainTextResponse,
    responses={**gives(None), **refusals(401, 403, 429)},
)
async def metrics(context: Context) -> Response:
    """Prometheus' text format."""
    text = await asyncio.to_thread(context.metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.post(
    "/admin/refresh",
    dependencies=[allow("admin")],
    response_model=None,
    responses={**gives(State), **refusals(401, 403, 429, 503)},
)
async def refresh(context: Context) -> dict[str, Any]:
    """Looks at the store now, instead of at the next poll; answers once what moved is served, or awaited."""
    await context.lifecycle.stored(asyncio.wrap_future(context.looking.submit(context.follower.poll)))
    return store_body(context)


def store_body(context: ServerContext) -> dict[str, Any]:
    """What is known of the store, and why aliases are not served as it says."""
    follower = context.follower
    problem = follower.status.problem
    refused = [
        {"task": task, "alias": alias, "version": refusal.version.number, "reason": str(refusal.error)}
        for (task, alias), refusal in sorted(follower.table.refused.items())
        if not refusal.is_foreign
    ]
    return {
        "store": {
            "commit": follower.table.state.number,
            "staleness_s": round(follower.staleness_s, 3),
            "is_stale": context.is_stale,
            "problem": None if problem is None else str(problem),
        },
        "aliases": len(follower.table.targets),
        "awaited": [
            {"task": task, "alias": alias, "version": awaited.version.number}
            for (task, alias), awaited in sorted(follower.table.awaited.items())
        ],
        "refused": refused,
        "trials": [_trial(trial) for _, (trial, _) in sorted(follower.table.trials.items())],
    }


def _trial(trial: Trial) -> dict[str, Any]:
    """How a version on trial does at this replica."""
    return {
        "task": trial.rollout.task,
        "alias": trial.rollout.alias,
        "version": trial.rollout.number,
        "mode": trial.rollout.mode,
        "share": trial.rollout.share,
        "answers": trial.on_trial.answers,
        "failures": trial.on_trial.failures,
        "median_s": round(trial.on_trial.median_s, 4),
        "median_s_in_place": round(trial.in_place.median_s, 4),
        "agreement": trial.agreed / trial.compared if trial.compared else None,
        "is_given_up": trial.is_over,
    }
