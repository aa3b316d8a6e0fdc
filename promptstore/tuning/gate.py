"""May this version go where users are? A pure decision over evaluations; who asks and what follows is the caller's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import InvalidInputError
from promptstore.tuning.evaluation import Evaluation
from promptstore.tuning.significance import mcnemar, paired_difference, upper_tail

Figure = float | int | str | None


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """What a version must show.

    minimum: bound of the task's metric, `None` for none. alpha: chance that a version which is no worse fails the
    comparison with production. max_drop: how far the metric itself may lie behind production, proven or not.
    min_recall: bound of every label's recall, `None` for none. min_rows: fewer rows prove nothing.
    """

    minimum: float | None = None
    alpha: float = 0.05
    max_drop: float = 0.05
    min_recall: float | None = None
    min_rows: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.max_drop < 0 or self.min_rows < 1:
            raise InvalidInputError(f"gate policy: alpha is between 0 and 1, max_drop >= 0, min_rows >= 1: {self}")


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One rule, the figures it looked at, and whether it held."""

    name: str
    holds: bool
    explanation: str
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "holds": self.holds,
            "explanation": self.explanation,
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Every rule that applied. One that does not hold fails the version."""

    metric: str
    candidate: float
    production: float | None
    data_digest: str
    rows: int
    checks: tuple[GateCheck, ...]

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        return "pass" if all(check.holds for check in self.checks) else "fail"

    @property
    def failures(self) -> tuple[GateCheck, ...]:
        return tuple(check for check in self.checks if not check.holds)

    def to_json(self) -> dict[str, Any]:
        """The body of the `gate` attestation (ADR 0020), but for the alias and the version compared with."""
        return {
            "verdict": self.verdict,
            "metric": self.metric,
            "candidate": self.candidate,
            "production": self.production,
            "data_digest": self.data_digest,
            "rows": self.rows,
            "checks": [check.to_json() for check in self.checks],
        }


def decide(
    candidate: Evaluation,
    production: Evaluation | None,
    policy: GatePolicy,
    *,
    prompt: SoftPrompt | None = None,
    base: BaseModelFingerprint | None = None,
) -> GateVerdict:
    """The verdict on `candidate`.

    production: what is in production now, evaluated on the same rows; `None` if nothing is.
    prompt, base: the candidate's tensor, and the model that will serve it; checked if both are given.

    Raises:
        InvalidInputError: the two evaluations are of different rows.
    """
    checks = [*_own_checks(candidate, policy)]
    if production is not None:
        checks += [*_comparison(candidate, production, policy)]
    if prompt is not None:
        checks += [*_tensor_checks(prompt, base)]
    return GateVerdict(
        metric=candidate.metric,
        candidate=candidate.value,
        production=None if production is None else production.value,
        data_digest=candidate.data_digest,
        rows=candidate.rows,
        checks=tuple(checks),
    )


def _own_checks(candidate: Evaluation, policy: GatePolicy) -> Iterator[GateCheck]:
    yield GateCheck(
        "rows",
        candidate.rows >= policy.min_rows,
        f"{candidate.rows} held-out rows, at least {policy.min_rows} are needed",
        {"rows": candidate.rows, "bound": policy.min_rows},
    )
    if policy.minimum is not None:
        reached = candidate.value >= policy.minimum if candidate.higher_is_better else candidate.value <= policy.minimum
        yield GateCheck(
            "minimum",
            reached,
            f"{candidate.metric} is {candidate.value:.4g}, the bound is {policy.minimum:.4g}",
            {"value": candidate.value, "bound": policy.minimum},
        )
    if policy.min_recall is not None:
        for label, recall in candidate.recalls.items():
            yield GateCheck(
                f"recall of {label}",
                recall >= policy.min_recall,
                f"{recall:.1%} of the rows labelled {label!r} are found, the bound is {policy.min_recall:.1%}",
                {"value": recall, "bound": policy.min_recall},
            )


def _comparison(candidate: Evaluation, production: Evaluation, policy: GatePolicy) -> Iterator[GateCheck]:
    test = mcnemar(candidate, production)
    paired = paired_difference(candidate, production)
    p_worse = test.p_worse if candidate.metric in ("accuracy", "exact_match") else paired.p_worse
    yield GateCheck(
        "no worse than production",
        p_worse >= policy.alpha,
        f"{test.gained} rows gained and {test.lost} lost; p = {p_worse:.3g} for no worse, the bound is {policy.alpha}",
        {"gained": test.gained, "lost": test.lost, "p": p_worse, "bound": policy.alpha},
    )
    drop = max(0.0, -paired.difference)
    yield GateCheck(
        "drop",
        drop <= policy.max_drop,
        f"{candidate.metric} is {candidate.value:.4g} against {production.value:.4g}, "
        f"{policy.max_drop:.4g} behind is allowed",
        {"value": drop, "bound": policy.max_drop, "low": paired.low, "high": paired.high},
    )
    yield from _label_comparison(candidate, production, policy)


def _label_comparison(candidate: Evaluation, production: Evaluation, policy: GatePolicy) -> Iterator[GateCheck]:
    """A gain on one label can hide a loss on another. Each label has its share of alpha (Bonferroni)."""
    labels = list(candidate.recalls)
    for label in labels:
        rows = np.flatnonzero(candidate.columns["expected"] == candidate.labels.index(label))
        ours, theirs = candidate.is_correct[rows], production.is_correct[rows]
        gained, lost = int(np.sum(ours & ~theirs)), int(np.sum(~ours & theirs))
        p_worse = upper_tail(lost, gained + lost)
        bound = policy.alpha / len(labels)
        yield GateCheck(
            f"no worse on {label}",
            p_worse >= bound,
            f"of {len(rows)} rows labelled {label!r}, {gained} gained and {lost} lost; p = {p_worse:.3g}, "
            f"the bound is {bound:.3g}",
            {"gained": gained, "lost": lost, "p": p_worse, "bound": bound},
        )


def _tensor_checks(prompt: SoftPrompt, base: BaseModelFingerprint | None) -> Iterator[GateCheck]:
    norms = np.linalg.norm(prompt.embeddings, axis=1)
    dead = int(np.sum(norms == 0))
    of_each = "" if prompt.ensemble is None else f" in each of {prompt.ensemble.members} prompts"
    yield GateCheck(
        "tensor",
        bool(np.isfinite(norms).all()) and dead == 0,
        f"{prompt.num_virtual_tokens} virtual tokens{of_each}, all finite, {dead} of them zero; norms "
        f"{float(norms.min()):.3g} to {float(norms.max()):.3g}",
        {"zero_tokens": dead, "smallest_norm": float(norms.min()), "largest_norm": float(norms.max())},
    )
    if base is not None:
        yield GateCheck(
            "base model",
            prompt.fingerprint.identity == base.identity,
            f"fitted to {prompt.fingerprint.name}, served on {base.name}",
            {"fitted": prompt.fingerprint.weights_digest, "served": base.weights_digest},
        )
