"""What the gate asks of a version, and what it found (ADR 0020)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

from promptstore.core.fields import Fields
from promptstore.errors import CorruptError, InvalidInputError

Figure = float | int | str | None


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """What a version must show.

    minimum: bound of the task's metric, `None` for none. alpha: chance that a version which is no worse fails the
    comparison with production. max_drop: how far the metric itself may lie behind production, proven or not.
    min_recall: bound of every label's recall, `None` for none. min_rows: fewer rows prove nothing.
    slices: columns of the rows; it is no worse on the rows of any of their values. min_slice_accuracy: bound of the
    share of correct rows there. max_latency_ms: bound of the time to first token (`promptstore.tuning.latency`).
    max_latency_ratio: bound of that time over production's. max_norm: bound of every virtual token's length.

    Raises:
        InvalidInputError: a value of another type, or one that could never fail or never pass; the message names it.
    """

    minimum: float | None = None
    alpha: float = 0.05
    max_drop: float = 0.05
    min_recall: float | None = None
    min_rows: int = 20
    slices: tuple[str, ...] = ()
    min_slice_accuracy: float | None = None
    max_latency_ms: float | None = None
    max_latency_ratio: float | None = None
    max_norm: float | None = None

    def __post_init__(self) -> None:
        self._check_types()
        _require(0 < self.alpha < 1, "alpha", "between 0 and 1")
        _require(self.max_drop >= 0, "max_drop", "at least 0")
        _require(self.min_rows >= 1, "min_rows", "at least 1")
        for name in ("min_recall", "min_slice_accuracy"):
            _require((share := getattr(self, name)) is None or 0 <= share <= 1, name, "between 0 and 1")
        for name in ("max_latency_ms", "max_latency_ratio", "max_norm"):
            _require((bound := getattr(self, name)) is None or bound > 0, name, "above 0")
        _require(len(set(self.slices)) == len(self.slices), "slices", "columns, none of them twice")
        _require(self.min_slice_accuracy is None or bool(self.slices), "slices", "given with min_slice_accuracy")

    @property
    def bounds_latency(self) -> bool:
        return self.max_latency_ms is not None or self.max_latency_ratio is not None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "slices": list(self.slices)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "GatePolicy":
        """What `to_json` gave; a rule that is left out keeps its default.

        Raises:
            InvalidInputError: a name that is no rule (the message suggests the nearest), or a bad value.
        """
        known = [each.name for each in fields(cls)]
        for name in value:
            if name not in known:
                nearest = get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known rules: {', '.join(known)}"
                raise InvalidInputError(f"unknown rule of the gate {name!r}; {hint}")
        slices = value.get("slices", ())
        return cls(**{**value, "slices": tuple(slices) if isinstance(slices, list) else slices})

    def _check_types(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.default is None:
                continue
            expected = {"min_rows": int, "slices": tuple}.get(each.name, int | float)
            is_text = each.name != "slices" or all(isinstance(column, str) for column in value)
            if not isinstance(value, expected) or isinstance(value, bool) or not is_text:
                said = "a list of columns" if each.name == "slices" else "a number"
                raise InvalidInputError(f"rule {each.name} of the gate is {value!r}, expected {said}")


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

    @classmethod
    def from_json(cls, value: Any) -> "GateCheck":
        read = Fields(value, "gate: check")
        check = cls(read.text("name"), read.boolean("holds"), read.text("explanation"), read.mapping("figures"))
        read.done()
        return check


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Every rule that applied. One that does not hold fails the version.

    policy: what was asked. model: the digest of the weights that answered, `None` if nobody said.
    """

    metric: str
    candidate: float
    production: float | None
    data_digest: str
    rows: int
    checks: tuple[GateCheck, ...]
    policy: GatePolicy
    model: str | None = None

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
            "policy": self.policy.to_json(),
            "model": self.model,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "GateVerdict":
        """The verdict in the body of a `gate` attestation, whatever else that says.

        Raises:
            CorruptError: not what `to_json` gives, as of a gate of another release or make.
        """
        read = Fields(dict(body), "gate")
        try:
            verdict = cls(
                metric=read.text("metric"),
                candidate=read.number("candidate"),
                production=read.optional_number("production"),
                data_digest=read.digest("data_digest"),
                rows=read.integer("rows"),
                checks=tuple(GateCheck.from_json(each) for each in read.array("checks")),
                policy=GatePolicy.from_json(read.mapping("policy")),
                model=read.optional_digest("model"),
            )
        except InvalidInputError as error:
            raise CorruptError(f"gate: {error}") from error
        if (said := read.text("verdict")) != verdict.verdict:
            raise CorruptError(f"gate: the verdict is {said!r}, its checks come to {verdict.verdict!r}")
        return verdict


def _require(holds: bool, name: str, expected: str) -> None:  # noqa: FBT001 - a check reads best with its claim first
    if not holds:
        raise InvalidInputError(f"rule {name} of the gate must be {expected}")
