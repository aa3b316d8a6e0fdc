"""May this version go where users are? A pure decision over evaluations; who asks and what follows is the caller's."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import InvalidInputError
from promptstore.tuning.evaluation import Evaluation, Latency
from promptstore.tuning.gate import GateCheck, GatePolicy, GateVerdict
from promptstore.tuning.significance import mcnemar, paired_difference, upper_tail

Slices = Mapping[str, Sequence[str]]
NO_SLICES: Slices = {}
FLOAT16_MAX = float(np.finfo(np.float16).max)


def decide(
    candidate: Evaluation,
    production: Evaluation | None,
    policy: GatePolicy,
    *,
    prompt: SoftPrompt | None = None,
    base: BaseModelFingerprint | None = None,
    slices: Slices = NO_SLICES,
) -> GateVerdict:
    """The verdict on `candidate`.

    production: what is in production now, evaluated on the same rows; `None` if nothing is. Both with their latency
    where the policy bounds it.
    prompt, base: the candidate's tensor, and the model that will serve it; checked if both are given.
    slices: of each column that the policy names, every row's value.

    Raises:
        InvalidInputError: the two evaluations are of different rows, or what a rule looks at is not given.
    """
    _require_given(candidate, production, policy, prompt, slices)
    checks = [*_own_checks(candidate, policy)]
    if production is not None:
        checks += [*_comparison(candidate, production, policy)]
    checks += [*_slice_checks(candidate, production, policy, slices)]
    if candidate.latency is not None:
        checks += [*_latency_checks(candidate.latency, production, policy)]
    if prompt is not None:
        checks += [*_tensor_checks(prompt, policy), *_base_checks(prompt, base)]
    return GateVerdict(
        metric=candidate.metric,
        candidate=candidate.value,
        production=None if production is None else production.value,
        data_digest=candidate.data_digest,
        rows=candidate.rows,
        checks=tuple(checks),
        policy=policy,
        model=None if base is None else base.weights_digest,
    )


def _require_given(
    candidate: Evaluation,
    production: Evaluation | None,
    policy: GatePolicy,
    prompt: SoftPrompt | None,
    slices: Slices,
) -> None:
    """A rule must not hold because nobody looked."""
    is_untimed = [each is not None and each.latency is None for each in (candidate, production)]
    is_missing = {
        "max_norm": policy.max_norm is not None and prompt is None,
        "max_latency_ms": policy.max_latency_ms is not None and is_untimed[0],
        "max_latency_ratio": policy.max_latency_ratio is not None and any(is_untimed),
        "slices": any(len(slices.get(name, ())) != candidate.rows for name in policy.slices),
    }
    if missing := [rule for rule, lacks in is_missing.items() if lacks]:
        raise InvalidInputError(f"the gate was not given what these rules look at: {', '.join(missing)}")


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
        bound = policy.alpha / len(labels)
        yield _no_worse(f"on {label}", f"labelled {label!r}", candidate, production, rows, bound)


def _slice_checks(
    candidate: Evaluation, production: Evaluation | None, policy: GatePolicy, slices: Slices
) -> Iterator[GateCheck]:
    """A gain on one part of the rows can hide a loss on another. Each part has its share of alpha (Bonferroni)."""
    parts = {
        f"where {name} is {value}": np.flatnonzero([each == value for each in slices[name]])
        for name in policy.slices
        for value in sorted(set(slices[name]))
    }
    judged = {where: rows for where, rows in parts.items() if len(rows) >= policy.min_rows}
    for where, rows in parts.items():
        if where not in judged:
            yield GateCheck(
                f"rows {where}",
                holds=True,
                explanation=f"{len(rows)} rows {where}: not judged apart, fewer than {policy.min_rows} prove nothing",
                figures={"rows": len(rows), "bound": policy.min_rows},
            )
            continue
        if production is not None:
            yield _no_worse(where, where, candidate, production, rows, policy.alpha / len(judged))
        if policy.min_slice_accuracy is not None:
            share = float(candidate.is_correct[rows].mean())
            yield GateCheck(
                f"accuracy {where}",
                share >= policy.min_slice_accuracy,
                f"{share:.1%} of {len(rows)} rows {where} are correct, the bound is {policy.min_slice_accuracy:.1%}",
                {"value": share, "bound": policy.min_slice_accuracy, "rows": len(rows)},
            )


def _no_worse(
    where: str,
    which: str,
    candidate: Evaluation,
    production: Evaluation,
    rows: npt.NDArray[np.intp],
    bound: float,
) -> GateCheck:
    """Exact one-sided test over the rows that one of the two alone has right."""
    ours, theirs = candidate.is_correct[rows], production.is_correct[rows]
    gained, lost = int(np.sum(ours & ~theirs)), int(np.sum(~ours & theirs))
    p_worse = upper_tail(lost, gained + lost)
    return GateCheck(
        f"no worse {where}",
        p_worse >= bound,
        f"of {len(rows)} rows {which}, {gained} gained and {lost} lost; p = {p_worse:.3g}, the bound is {bound:.3g}",
        {"gained": gained, "lost": lost, "p": p_worse, "bound": bound},
    )


def _latency_checks(ours: Latency, production: Evaluation | None, policy: GatePolicy) -> Iterator[GateCheck]:
    if (bound := policy.max_latency_ms) is not None:
        yield GateCheck(
            "time to first token",
            ours.median_ms <= bound,
            f"{ours.median_ms:.3g} ms to the first token, median of {ours.rows} rows; {bound:.3g} ms are allowed",
            {"value": ours.median_ms, "bound": bound, "rows": ours.rows},
        )
    if policy.max_latency_ratio is not None:
        yield _latency_ratio(ours, None if production is None else production.latency, policy.max_latency_ratio)


def _latency_ratio(ours: Latency, theirs: Latency | None, bound: float) -> GateCheck:
    name = "time to first token against production"
    if theirs is None:
        figures = {"value": None, "bound": bound}
        return GateCheck(name, holds=True, explanation="there is nothing to compare with", figures=figures)
    ratio = ours.median_ms / theirs.median_ms
    return GateCheck(
        name,
        ratio <= bound,
        f"{ours.median_ms:.3g} ms to the first token against {theirs.median_ms:.3g} ms, {ratio:.3g} times as long; "
        f"{bound:.3g} times is allowed",
        {"value": ratio, "bound": bound, "candidate_ms": ours.median_ms, "production_ms": theirs.median_ms},
    )


def _tensor_checks(prompt: SoftPrompt, policy: GatePolicy) -> Iterator[GateCheck]:
    # In float64: the square of a float32 may be past its range.
    norms = np.linalg.norm(prompt.embeddings.astype(np.float64), axis=1)
    dead, longest = int(np.sum(norms == 0)), float(norms.max())
    of_each = "" if prompt.ensemble is None else f" in each of {prompt.ensemble.members} prompts"
    yield GateCheck(
        "tensor",
        dead == 0,
        f"{prompt.num_virtual_tokens} virtual tokens{of_each}, all finite, {dead} of them zero; norms "
        f"{float(norms.min()):.3g} to {longest:.3g}",
        {"zero_tokens": dead, "smallest_norm": float(norms.min()), "largest_norm": longest},
    )
    largest = float(np.abs(prompt.embeddings).max())
    yield GateCheck(
        "half precision",
        largest <= FLOAT16_MAX,
        f"the largest number is {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}",
        {"value": largest, "bound": FLOAT16_MAX},
    )
    if policy.max_norm is not None:
        yield GateCheck(
            "norm",
            longest <= policy.max_norm,
            f"the longest virtual token has norm {longest:.3g}, the bound is {policy.max_norm:.3g}",
            {"value": longest, "bound": policy.max_norm},
        )


def _base_checks(prompt: SoftPrompt, base: BaseModelFingerprint | None) -> Iterator[GateCheck]:
    if base is not None:
        yield GateCheck(
            "base model",
            prompt.fingerprint.identity == base.identity,
            f"fitted to {prompt.fingerprint.name}, served on {base.name}",
            {"fitted": prompt.fingerprint.weights_digest, "served": base.weights_digest},
        )
