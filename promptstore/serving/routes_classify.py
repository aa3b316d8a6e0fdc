"""Labels with probabilities."""

import secrets
import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from promptstore.serving.answers import ClassifyAnswer
from promptstore.serving.bodies import classified_body, usage_body, version_headers
from promptstore.serving.context import Caller, Context, allow
from promptstore.serving.responses import EVERY_REFUSAL, gives, refusals
from promptstore.serving.schemas import ClassifyRequest

router = APIRouter(tags=["classify"])


@router.post(
    "/v1/classify",
    dependencies=[allow("infer")],
    response_model=None,
    responses={**gives(ClassifyAnswer, is_versioned=True), **refusals(*EVERY_REFUSAL)},
)
async def classify(asked: ClassifyRequest, context: Context, caller: Caller) -> JSONResponse:
    """The label of each text under each task, with every label's probability.

    The task's own template is applied, and the version that answered is named in body and headers.
    """
    answers = await context.service.classify(asked.refs, asked.inputs, caller)
    body: dict[str, Any] = {
        "id": f"cls-{secrets.token_hex(12)}",
        "object": "classification",
        "created": int(time.time()),
        "model": asked.model,
        "results": [classified_body(answer) for answer in answers],
        "usage": usage_body(sum(answer.input_tokens for answer in answers), 0),
    }
    by_ref = [answer.target for answer in answers[: len(asked.refs)]]
    return JSONResponse(body, headers=version_headers(by_ref))
