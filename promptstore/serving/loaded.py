"""A version made ready to answer on the model that is served."""

from collections.abc import Mapping
from dataclasses import dataclass

from promptstore.core.manifest import Manifest
from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.described_model import DescribedModel
from promptstore.lm.encoding import TaskEncoder
from promptstore.store.prompt_store import PulledPrompt

Input = str | Mapping[str, str]
# Inputs that share nothing at their start: what their encodings have in common belongs to the template.
_PROBES = ("a", "Zq", "7", "(", "é")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPrompt:
    """What a digest means on this model: the prompt, how its task's inputs are encoded, and its labels' tokens.

    prefix_ids: tokens that inputs of the task start with. label_token_ids: empty for generation.
    """

    digest: str
    manifest: Manifest
    prompt: SoftPrompt
    encoder: TaskEncoder
    label_token_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]

    @property
    def task(self) -> TaskSpec:
        return self.manifest.task

    @property
    def is_after(self) -> bool:
        return self.task.placement == "after"

    def row(self, value: Input) -> Mapping[str, str]:
        """The template's fields. A plain text stands for the only field.

        Raises:
            InvalidInputError: a text for a template of several fields, or other fields than the template's.
        """
        fields = self.task.template_fields
        if isinstance(value, str):
            if len(fields) != 1:
                example = ", ".join(f'"{name}": "…"' for name in fields)
                raise InvalidInputError(
                    f"task {self.task.name} has the input fields {', '.join(fields)}; send {{{example}}}"
                )
            return {fields[0]: value}
        if unknown := sorted(set(value) - set(fields)):
            raise InvalidInputError(
                f"task {self.task.name} has no input field {', '.join(unknown)}; its fields are {', '.join(fields)}"
            )
        return value


def load_prompt(pulled: PulledPrompt, model: DescribedModel) -> LoadedPrompt:
    """What `pulled` means on `model`.

    Raises:
        IncompatibleModelError: it was fitted to another model.
        InvalidInputError: its task cannot be asked of this model (labels that start with one token, say).
    """
    manifest = pulled.manifest
    manifest.fingerprint.require_match(model.fingerprint, str(pulled.version))
    task = manifest.task
    answer_tokens = 1 if task.kind == "classification" else task.max_target_tokens
    encoder = TaskEncoder(task, model, reserved=pulled.prompt.num_virtual_tokens + answer_tokens)
    labels = encoder.label_token_ids if task.kind == "classification" else ()
    return LoadedPrompt(
        pulled.version.digest, manifest, pulled.prompt, encoder, labels, common_start(encoder, task.template_fields)
    )


def common_start(encoder: TaskEncoder, fields: tuple[str, ...]) -> tuple[int, ...]:
    """The tokens that unlike inputs have in common at their start. Only a hint: each input is compared with them."""
    encoded = [encoder.encode(dict.fromkeys(fields, probe)) for probe in _PROBES]
    shared = 0
    for column in zip(*encoded, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return tuple(encoded[0][:shared])
