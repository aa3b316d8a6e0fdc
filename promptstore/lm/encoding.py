"""From a row of text fields to token ids, the same for tuning and serving."""

import unicodedata
from collections.abc import Mapping
from functools import cached_property

from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.described_model import DescribedModel

# Stands for a field's text where only the template around it matters.
PLACEHOLDER = "x"


class TaskEncoder:
    """Encodes the inputs, labels and targets of one task for one model.

    Input and answer are joined as a person would write them: spaces that end the template move to the answer's side,
    where tokenizers expect them, and one is put between if neither side has white space.

    reserved: positions of the model that inputs must leave free, for virtual tokens and the answer.

    Raises:
        InvalidInputError: the prompt is to stand after the input, and the model has an encoder.
    """

    def __init__(self, task: TaskSpec, model: DescribedModel, *, reserved: int = 0) -> None:
        if task.placement == "after" and model.is_encoder_decoder:
            raise InvalidInputError(
                f"task {task.name}: placement 'after' is for decoder-only models, {model.fingerprint.name} has an "
                "encoder; use 'before'"
            )
        self.task = task
        self._tokenizer = model.tokenizer
        self._is_encoder_decoder = model.is_encoder_decoder
        room = task.max_input_tokens if model.max_length is None else model.max_length - reserved
        self.max_input_tokens = min(task.max_input_tokens, room)

    def encode(self, row: Mapping[str, str]) -> list[int]:
        """Token ids of one input, 1 to `max_input_tokens`; too long, the longest field loses its end.

        Raises:
            InvalidInputError: `row` lacks a field of the template, nothing is left to encode, or the template alone is
                too long.
        """
        ids = self._input_ids(self.task.render(row))
        if not ids:
            raise InvalidInputError(f"task {self.task.name}: the input is empty: {dict(row)}")
        if len(ids) <= self.max_input_tokens:
            return ids
        fields = {name: row[name] for name in self.task.template_fields}
        while len(ids) > self.max_input_tokens:
            if not any(fields.values()):
                raise InvalidInputError(
                    f"task {self.task.name}: the template alone takes {len(ids)} tokens, inputs may have "
                    f"{self.max_input_tokens}; shorten the template or raise max_input_tokens"
                )
            fields = self._shortened(fields, len(ids) - self.max_input_tokens)
            ids = self._input_ids(self.task.render(fields))
        return ids

    def count_tokens(self, row: Mapping[str, str]) -> int:
        """How many tokens the input has before anything is cut."""
        return len(self._input_ids(self.task.render(row)))

    @cached_property
    def label_token_ids(self) -> tuple[int, ...]:
        """The first token of each label's verbaliser, in label order: what classification is read from.

        Raises:
            InvalidInputError: two verbalisers begin with the same token, or one has no token.
        """
        owners: dict[int, str] = {}
        for label in self.task.labels:
            ids = self._answer_ids(label.verbaliser)
            if not ids:
                raise InvalidInputError(
                    f"task {self.task.name}: label {label.name!r}: verbaliser {label.verbaliser!r} has no token"
                )
            if (other := owners.get(ids[0])) is not None:
                raise InvalidInputError(
                    f"task {self.task.name}: labels {other!r} and {label.name!r} begin with the same token "
                    f"{self._tokenizer.decode([ids[0]])!r} for this model; give one of them another verbaliser"
                )
            owners[ids[0]] = label.name
        return tuple(owners)

    def target_ids(self, text: str) -> list[int]:
        """Token ids to generate for `text`, at most `max_target_tokens`, ended by the end-of-text token if it fits."""
        ids = self._answer_ids(text)
        end = self._tokenizer.eos_token_id
        if end is not None:
            ids = [*ids, int(end)]
        return ids[: self.task.max_target_tokens]

    def _input_ids(self, text: str) -> list[int]:
        ids = [int(index) for index in self._tokenizer(self._open_end(text))["input_ids"]]
        if not self._is_encoder_decoder and ids and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        return ids

    def _open_end(self, text: str) -> str:
        return text if self._is_encoder_decoder else text.rstrip(" ")

    def _answer_ids(self, text: str) -> list[int]:
        """Tokens of an answer where it follows the template: tokens may depend on what is before them."""
        if self._is_encoder_decoder:
            return self._plain_ids(text.strip())
        before = self._open_end(self.task.render(dict.fromkeys(self.task.template_fields, PLACEHOLDER)))
        alone = self._plain_ids(before)
        joined = self._plain_ids(before + _joined_answer(before, text))
        shared = next(
            (at for at, pair in enumerate(zip(alone, joined, strict=False)) if pair[0] != pair[1]), len(alone)
        )
        return joined[shared:]

    def _plain_ids(self, text: str) -> list[int]:
        return [int(index) for index in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _shortened(self, fields: Mapping[str, str], surplus: int) -> dict[str, str]:
        """`fields` with about `surplus` tokens fewer: always the longest loses, down to the next longest."""
        lengths = {name: len(self._plain_ids(text)) for name, text in fields.items()}
        keep = dict(lengths)
        for _ in range(surplus):
            longest = max(keep, key=lambda name: keep[name])
            keep[longest] = max(0, keep[longest] - 1)
        return {
            name: self._first_tokens(text, keep[name]) if keep[name] < lengths[name] else text
            for name, text in fields.items()
        }

    def _first_tokens(self, text: str, count: int) -> str:
        """The part of `text` that its first `count` tokens cover; always shorter than `text`."""
        if count == 0:
            return ""
        if not self._tokenizer.is_fast:
            return text[: min(len(text) - 1, len(text) * count // max(1, len(self._plain_ids(text))))]
        offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text[: min(len(text) - 1, int(offsets[count - 1][1]))]


def _joined_answer(before: str, text: str) -> str:
    answer = text.strip(" ")
    if not answer or not before or before[-1].isspace() or answer[0].isspace() or _is_wide(answer[0]):
        return answer
    return f" {answer}"


def _is_wide(character: str) -> bool:
    """Chinese, Japanese and other scripts that put no space between words."""
    return unicodedata.east_asian_width(character) in "WF"
