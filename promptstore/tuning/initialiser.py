"""Where a prompt's first values come from, as a task file says it."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, cast, get_args

from promptstore.errors import InvalidInputError

InitialiserKind = Literal["random", "uniform", "vocabulary", "text", "labels", "examples", "file", "version", "nearest"]

# Lester et al. 2021, section 3.2: sampled from the 5,000 most common tokens.
COMMON_TOKENS = 5000
# As drawn there for the baseline, uniform over -0.5 to 0.5.
UNIFORM_BOUND = 0.5
_NEEDS_ARGUMENT = {"text": "text:Is this review good?", "file": "file:prompt.safetensors", "version": "version:task:3"}
_TAKES_NONE = ("random", "labels", "examples", "nearest")


@dataclass(frozen=True, slots=True)
class Initialiser:
    """One of the ways to begin; `argument` is what stands behind the colon, empty if nothing does."""

    kind: InitialiserKind
    argument: str = ""

    @property
    def number(self) -> float:
        """The argument of `vocabulary` and `uniform`, or their default."""
        default = COMMON_TOKENS if self.kind == "vocabulary" else UNIFORM_BOUND
        return float(self.argument) if self.argument else default


def parse_initialiser(text: str) -> Initialiser:
    """Reads `random`, `uniform[:bound]`, `vocabulary[:n]`, `labels`, `examples`, `text:…` and the like.

    The others are `file:PATH`, `version:REF` and `nearest`.

    random: normal, with mean and deviation of the model's embedding table. vocabulary: embeddings of tokens drawn from
    the n most common ones. labels: embeddings of the labels, if the task has any, then of the vocabulary. examples: of
    the labels, then of short training rows with their answers, whose words may stay readable in the prompt. text:
    embeddings of a text's tokens, repeated to the prompt's length. version: a published prompt of the same base model.
    nearest: of the stored prompts of other tasks the one behind which the new task's rows fare best (SPoT, Vu et al.
    2022).

    >>> parse_initialiser("vocabulary:2000")
    Initialiser(kind='vocabulary', argument='2000')

    Raises:
        InvalidInputError: none of these.
    """
    kind, _, argument = text.partition(":")
    if kind not in (kinds := get_args(InitialiserKind)):
        nearest = get_close_matches(kind, kinds, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise InvalidInputError(f"unknown initialiser {text!r}, expected one of {', '.join(kinds)}{hint}")
    found = Initialiser(cast("InitialiserKind", kind), argument)
    if kind in _NEEDS_ARGUMENT and not argument.strip():
        raise InvalidInputError(f"initialiser {text!r} lacks what to start from, as in {_NEEDS_ARGUMENT[kind]!r}")
    if kind in _TAKES_NONE and argument:
        raise InvalidInputError(f"initialiser {text!r}: {kind!r} takes nothing behind a colon")
    _check_number(found, text)
    return found


def _check_number(found: Initialiser, text: str) -> None:
    if found.kind not in ("vocabulary", "uniform"):
        return
    try:
        number = found.number
    except ValueError as error:
        raise InvalidInputError(f"initialiser {text!r}: {found.argument!r} is not a number") from error
    if number <= 0 or (found.kind == "vocabulary" and number != int(number)):
        raise InvalidInputError(f"initialiser {text!r}: the number must be positive, and whole for 'vocabulary'")
