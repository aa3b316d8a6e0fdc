"""Whether the server is well, what it counts, and the operator's one command."""

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from promptstore.serving.context import Context, ServerContext, allow
from promptstore.serving.failures import error_response
from promptstore.serving.trials import Trial

router = APIRouter(tags=["state"])


@router.get("/healthz")
async def health(context: Context) -> JSONResponse:
    """200 while the process can answer at all; otherwise restart it."""
    is_alive = context.scheduler.is_alive or context.lifecycle.is_draining
    return JSONResponse({"status": "ok" if is_alive else "the engine's thread has ended"}, 200 if is_alive else 503)


@router.get("/readyz")
async def readiness(context: Context) -> JSONResponse:
    """200 while new requests are welcome. A store that cannot be reached is reported here and fails nothing."""
    problem = "draining" if context.lifecycle.is_draining else context.scheduler.problem
    status = problem or ("ready" if context.follower.status.problem is None else "ready, serving what was last known")
    body = {"status": status, **store_body(context)}
    return JSONResponse(body, 200) if problem is None else error_response(503, body)


@router.get("/metrics", dependencies=[allow("admin")])
async def metrics(context: Context) -> Response:
    """Prometheus' text format."""
    return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.post("/admin/refresh", dependencies=[allow("admin")])
async def refresh(context: Context) -> dict[str, Any]:
    """Looks at the store now, instead of at the next poll; answers once what moved is served."""
    await asyncio.to_thread(context.follower.poll)
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
        "mean_s": round(trial.on_trial.mean_s, 4),
        "mean_s_in_place": round(trial.in_place.mean_s, 4),
        "agreement": trial.agreed / trial.compared if trial.compared else None,
        "is_given_up": trial.is_over,
    }
