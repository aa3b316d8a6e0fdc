"""An engine without threads or HTTP, for tests: prompts by name in, whole answers out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from promptstore.core.digest import sha256_hex
from promptstore.core.prompt import SoftPrompt
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.bank import Budgets, PromptBank
from promptstore.runtime.engine import Engine
from promptstore.runtime.job import Event, Failed, Finished, Generated, GenerateJob, Scored, ScoreJob
from promptstore.runtime.row import Decoding
from promptstore.runtime.sampling import ChosenToken, Sampling
from promptstore.runtime.spill import DiskSpill


@dataclass(slots=True)
class Answer:
    """What was delivered for one job, put together."""

    logits: tuple[float, ...] | None = None
    text: str = ""
    tokens: list[ChosenToken] = field(default_factory=list)
    reason: str | None = None
    error: Exception | None = None
    ends: int = 0

    def take(self, event: Event) -> None:
        match event:
            case Scored(logits):
                self.logits = logits
            case Generated(token, text):
                self.tokens.append(token)
                self.text += text
            case Finished(text, reason):
                self.text += text
                self.reason = reason
            case Failed(error):
                self.error = error
        self.ends += not isinstance(event, Generated)

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


@dataclass(frozen=True, slots=True)
class RigSource:
    """A prompt and the tokens its inputs start with."""

    prompt: SoftPrompt
    prefix_ids: tuple[int, ...] = ()
    is_after: bool = False


class EngineRig:
    """One engine over one model. `score` and `generate` make jobs; `run` answers jobs as one batch of each kind."""

    def __init__(
        self,
        model: FrozenModel,
        decoding: Decoding,
        prompts: Mapping[str, SoftPrompt],
        *,
        prefixes: Mapping[str, tuple[int, ...]] | None = None,
        after: Collection[str] = (),
        budgets: Budgets | None = None,
        spill: DiskSpill | None = None,
    ) -> None:
        self.bank: PromptBank[RigSource] = PromptBank(model, decoding, budgets=budgets or Budgets(), spill=spill)
        self.engine = Engine(model, self.bank, decoding)
        for name, prompt in prompts.items():
            source = RigSource(prompt, (prefixes or {}).get(name, ()), is_after=name in after)
            self.bank.hold(digest_of(name), lambda source=source: source)  # type: ignore[misc]

    def score(self, name: str, input_ids: Sequence[int], labels: Sequence[int]) -> tuple[ScoreJob, Answer]:
        answer = Answer()
        return ScoreJob(digest_of(name), input_ids, labels, answer.take), answer

    def generate(self, name: str, input_ids: Sequence[int], sampling: Sampling) -> tuple[GenerateJob, Answer]:
        answer = Answer()
        return GenerateJob(digest_of(name), input_ids, sampling, answer.take), answer

    def answer(self, asked: tuple[ScoreJob | GenerateJob, Answer]) -> Answer:
        """Answers one job, alone unless others are running."""
        job, answer = asked
        self.run(job)
        return answer

    def run(self, *jobs: ScoreJob | GenerateJob) -> None:
        scores = [job for job in jobs if isinstance(job, ScoreJob)]
        starts = [job for job in jobs if isinstance(job, GenerateJob)]
        if scores:
            self.engine.score(scores)
        if starts:
            self.engine.start(starts)
        while self.engine.running:
            self.engine.step()


def digest_of(name: str) -> str:
    return sha256_hex(name.encode())


def random_prompt(model: FrozenModel, num_virtual_tokens: int, seed: int) -> SoftPrompt:
    """A prompt drawn near the scale of the model's own embeddings."""
    scale = float(model.embeddings.float().std())
    shape = (num_virtual_tokens, model.hidden_size)
    drawn = np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)
    return SoftPrompt(drawn, model.fingerprint)
