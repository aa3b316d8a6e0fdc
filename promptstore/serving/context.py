"""What the routes share, and how they get it."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer

from promptstore.runtime.answerer import Answerer
from promptstore.runtime.bank import PromptBank
from promptstore.serving.access import Access
from promptstore.serving.api_keys import Scope
from promptstore.serving.bodies import TokenTexts
from promptstore.serving.following import Follower
from promptstore.serving.lifecycle import Lifecycle
from promptstore.serving.loaded import LoadedPrompt
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.service import Service
from promptstore.store.store_threads import StoreThreads

CALLER_HEADER = "x-promptstore-caller"
# Only says in the interface's description how a key is sent; `Access` reads it.
_BEARER = Security(HTTPBearer(auto_error=False, description="An API key, where keys are in use."))


@dataclass(frozen=True, slots=True)
class ServerContext:
    """Everything a running server is made of. staleness_bound_s: older than this, the state is reported as stale.

    decoding: how prompts go through the model, for people. looking: looks at the store that somebody asked for.
    """

    service: Service
    follower: Follower
    bank: PromptBank[LoadedPrompt]
    scheduler: Answerer
    metrics: ServerMetrics
    access: Access
    decoding: str
    staleness_bound_s: float = 60.0
    looking: StoreThreads = field(default_factory=lambda: StoreThreads(1, "look"))

    @property
    def lifecycle(self) -> Lifecycle:
        return self.service.resolver.lifecycle

    @property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(self.service.model.tokenizer)

    @property
    def problem(self) -> str | None:
        """Why new requests are not welcome; `None` if they are."""
        if self.lifecycle.is_draining:
            return "draining"
        if self.scheduler.problem is not None:
            return self.scheduler.problem
        return "no alias of the store can be served" if self.follower.table.serves_nothing else None

    @property
    def is_stale(self) -> bool:
        return self.follower.staleness_s > self.staleness_bound_s


# A dependency that is no coroutine runs on a thread: slower, and two requests at once in what is for one loop.
async def get_context(request: Request) -> ServerContext:
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(get_context)]


def allow(scope: Scope) -> Any:
    """A dependency that lets only callers with `scope` through."""

    async def check(request: Request, context: Context, _: Any = _BEARER) -> None:
        client = request.client.host if request.client else ""
        key = context.access.admit(request.headers.get("authorization"), client, scope)
        request.state.key_name = key.name

    return Depends(check)


async def is_known(request: Request, context: Context) -> bool:
    """Whether the caller may see what is not for strangers: it has a key, or nobody needs one here."""
    return context.access.knows(request.headers.get("authorization"))


async def get_caller(
    caller: Annotated[
        str,
        Header(
            alias=CALLER_HEADER,
            description="Who asks, in any words: a caller stays with one version while another is on trial.",
        ),
    ] = "",
) -> str:
    """Whose requests stay with one version of a rollout: what the header says, or nobody in particular."""
    return caller


Caller = Annotated[str, Depends(get_caller)]
IsKnown = Annotated[bool, Depends(is_known)]
