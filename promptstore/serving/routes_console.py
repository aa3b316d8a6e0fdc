"""The server's page, and what it shows."""

import time
from functools import cache
from importlib.metadata import version as installed_version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from promptstore.core.ref import DIGEST_PREFIX
from promptstore.core.state import AliasMove, TaskState
from promptstore.serving.context import Context, ServerContext, allow
from promptstore.serving.routes_state import store_body

router = APIRouter(include_in_schema=False)

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_TASKS_SHOWN = 100
_VERSIONS_SHOWN = 20
_MOVES_SHOWN = 50


@router.get("/")
async def root() -> Response:
    return RedirectResponse("console/")


@router.get("/console")
async def without_slash() -> Response:
    return RedirectResponse("console/")


@router.get("/console/state", dependencies=[allow("infer")])
async def state(context: Context, find: Annotated[str, Query(max_length=64)] = "") -> dict[str, Any]:
    """Tasks whose name holds `find`, and everything else the page shows."""
    followed = context.follower.table.state
    names = sorted(name for name in followed.tasks if find.lower() in name)
    tasks = [followed.tasks[name] for name in names[:_TASKS_SHOWN]]
    moves = sorted((move for task in tasks for move in task.moves), key=lambda move: -move.commit)
    return {
        "server": _server(context),
        "status": {
            **store_body(context),
            "queued": context.scheduler.queued,
            "running": context.scheduler.running,
            "bank_bytes": context.bank.size_bytes,
        },
        "tasks": [_task(context, task) for task in tasks],
        "total_tasks": len(names),
        "moves": [_move(move) for move in moves[:_MOVES_SHOWN]],
    }


@router.get("/console/{name:path}")
async def asset(name: str) -> Response:
    """The page's files. No key is needed: they are the same for everybody."""
    name = name or "index.html"
    if name not in _TYPES:
        raise HTTPException(404)
    return Response(_read(name), media_type=_TYPES[name], headers=_HEADERS)


@cache
def _read(name: str) -> bytes:
    return (files("promptstore.serving") / "console" / name).read_bytes()


def _server(context: ServerContext) -> dict[str, Any]:
    model = context.service.model
    return {
        "model": model.fingerprint.name,
        "architecture": model.fingerprint.architecture,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "decoding": context.decoding,
        "version": installed_version("promptstore"),
        "time": time.time(),
    }


def _task(context: ServerContext, task: TaskState) -> dict[str, Any]:
    return {
        "name": task.name,
        "aliases": [_alias(context, task.name, alias) for alias in sorted(task.aliases)],
        "version_count": len(task.versions),
        "versions": [
            {
                "number": version.number,
                "digest": DIGEST_PREFIX + version.digest,
                "at": version.at,
                "actor": version.actor,
                "has_passed_gate": version.has_passed_gate,
                "is_expired": version.is_expired,
            }
            for version in reversed(task.versions[-_VERSIONS_SHOWN:])
        ],
    }


def _alias(context: ServerContext, task: str, alias: str) -> dict[str, Any]:
    table = context.follower.table
    target, refusal = table.targets.get((task, alias)), table.refused.get((task, alias))
    reason = None if refusal is None else {"version": refusal.version.number, "reason": str(refusal.error)}
    shown: dict[str, Any] = {"alias": alias, "version": None, "refused": reason}
    if target is None:
        return shown
    return {
        **shown,
        "version": target.version.number,
        "digest": DIGEST_PREFIX + target.version.digest,
        "kind": target.prompt.task.kind,
        "fields": list(target.prompt.task.template_fields),
        "tier": context.bank.tier(target.version.digest),
        "published": {"at": target.version.at, "actor": target.version.actor},
    }


def _move(move: AliasMove) -> dict[str, Any]:
    return {
        "task": move.task,
        "alias": move.alias,
        "before": move.before,
        "after": move.after,
        "at": move.at,
        "actor": move.actor,
        "reason": move.reason,
        "forced": move.forced,
    }
