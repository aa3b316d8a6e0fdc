"""After a promotion: is the version whole, and did the servers take it?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from promptstore.client.attempts import NO_RETRIES
from promptstore.client.blocking import Client
from promptstore.errors import PromptStoreError, StoreUnavailableError
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.job_gate import GateOutcome, current_number

POLL_S = 0.5
ANSWER_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What was found after a promotion: "moved on" if somebody moved the alias again since, which is their affair."""

    state: Literal["confirmed", "moved on", "broken"]
    explanation: str


def confirm_promotion(
    store: PromptStore,
    outcome: GateOutcome,
    *,
    servers: Sequence[str] = (),
    timeout_s: float = 30.0,
    api_key: str | None = None,
) -> Confirmation:
    """Look again, as a reader would: does the alias name the version, are its bytes whole, and do `servers` serve it?

    servers: their URLs. One that refuses the version still when `timeout_s` is over breaks the promotion; one that
    cannot be asked, or has not looked at the store since, is named and breaks nothing.
    api_key: what servers that ask for keys tell their state for.

    Raises:
        StoreUnavailableError: the store cannot be read now.
    """
    store.refresh()
    now = current_number(store, outcome.task, outcome.alias)
    if now != outcome.number:
        return Confirmation("moved on", f"{outcome.task}@{outcome.alias} points at version {now} since")
    try:
        store.pull(outcome.ref, for_model=None)
    except StoreUnavailableError:
        raise
    except PromptStoreError as error:
        return Confirmation("broken", str(error))
    deadline = time.monotonic() + timeout_s
    heard = [_hear(url, outcome, store.state.number, deadline, api_key) for url in servers]
    if refusals := [f"{each.url} refuses it: {each.refusal}" for each in heard if each.refusal is not None]:
        return Confirmation("broken", "; ".join(refusals))
    said = [f"{each.url} {'serves it' if each.problem is None else each.problem}" for each in heard]
    return Confirmation("confirmed", "; ".join([f"{outcome.task}@{outcome.alias} is version {outcome.number}", *said]))


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a server said last. problem: why it could not be asked. Neither: it serves the version."""

    url: str
    refusal: str | None = None
    problem: str | None = None


def _hear(url: str, outcome: GateOutcome, commit: int, deadline: float, api_key: str | None) -> _Heard:
    """commit: of the log, which the server must have seen."""
    with Client(url, api_key=api_key, timeout_s=ANSWER_WITHIN_S, retries=NO_RETRIES) as client:
        while True:
            heard = _hear_once(client, url, outcome, commit)
            if heard == _Heard(url) or time.monotonic() >= deadline:
                return heard
            time.sleep(POLL_S)


def _hear_once(client: Client, url: str, outcome: GateOutcome, commit: int) -> _Heard:
    try:
        state = client.state()
    except PromptStoreError as error:
        return _Heard(url, problem=f"cannot be asked ({error})")
    if state["store"]["commit"] < commit:
        return _Heard(url, problem=f"has not seen commit {commit} yet")
    wanted = (outcome.task, outcome.alias, outcome.number)
    reasons = [each["reason"] for each in state["refused"] if (each["task"], each["alias"], each["version"]) == wanted]
    if reasons:
        return _Heard(url, refusal=reasons[0])
    is_awaited = wanted in [(each["task"], each["alias"], each["version"]) for each in state.get("awaited", ())]
    return _Heard(url, problem="has not loaded it yet" if is_awaited else None)
