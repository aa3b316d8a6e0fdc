"""What is asked of the engine, and what it says back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from promptstore.errors import CorruptError
from promptstore.runtime.sampling import ChosenToken, Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to a `ScoreJob`. logits: one per label, in the job's order, up to a term that they share.

    batch_rows: inputs that were answered together; `None` where another server decides and does not say.
    """

    logits: tuple[float, ...]
    batch_rows: int | None


@dataclass(frozen=True, slots=True)
class Generated:
    """One more token of a `GenerateJob`. text: what became certain with it; may be empty."""

    token: ChosenToken
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a `GenerateJob`. text: what was held back until now."""

    text: str
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Failed:
    """The job got no answer, or no further one."""

    error: Exception


Event = Scored | Generated | Finished | Failed


@dataclass(slots=True, eq=False)
class ScoreJob:
    """Score labels after one input under one prompt, by the logits of their first tokens.

    digest: of the prompt's manifest; the bank must hold it until the last event.
    deliver: called on the engine's thread, once; must neither block nor raise.
    waited_s, place, batch_rows: as in `GenerateJob`.
    """

    digest: str
    input_ids: Sequence[int]
    label_token_ids: Sequence[int]
    deliver: Callable[[Event], None]
    is_cancelled: bool = field(default=False, init=False)
    waited_s: float | None = field(default=None, init=False)
    place: str | None = field(default=None, init=False)
    batch_rows: int | None = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class GenerateJob:
    """Continue one input under one prompt.

    deliver: called on the engine's thread, per token and at the end; must neither block nor raise.
    is_cancelled: set it from any thread to stop early; nothing is delivered any more.
    waited_s: in the queue. place: where the bank found the prompt. batch_rows: inputs answered together at the start.
    They are set before the first event, where whoever answers knows them.
    """

    digest: str
    input_ids: Sequence[int]
    sampling: Sampling
    deliver: Callable[[Event], None]
    is_cancelled: bool = field(default=False, init=False)
    waited_s: float | None = field(default=None, init=False)
    place: str | None = field(default=None, init=False)
    batch_rows: int | None = field(default=None, init=False)


Job = ScoreJob | GenerateJob


def not_finite() -> CorruptError:
    """Why a job whose scores are no numbers gets no answer."""
    return CorruptError(
        "the model's scores are NaN or infinite: the prompt drives this dtype out of range; "
        "serve in float32 or bfloat16, or tune the task again"
    )
