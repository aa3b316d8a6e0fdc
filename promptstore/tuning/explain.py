"""What a prompt says, read with the model it belongs to."""

import torch

from promptstore.analysis.reading import PromptReading, read_prompt
from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel


def explain(model: FrozenModel, prompt: SoftPrompt, task: TaskSpec, *, k: int = 5) -> PromptReading:
    """Nearest vocabulary tokens, their tightness against a control, label words that persist, repeated virtual tokens.

    Raises:
        IncompatibleModelError: the prompt was fitted to another model.
        InvalidInputError: k is not 2 to the size of the vocabulary, or two labels begin with the same token.
    """
    prompt.fingerprint.require_match(model.fingerprint, "the prompt")
    known = min(len(model.tokenizer), model.vocabulary_size)
    table = model.embed(torch.arange(known, device=model.device))
    return read_prompt(
        torch.from_numpy(prompt.embeddings.copy()),
        table,
        text_of=lambda token: _text_of(model, token),
        labels=dict(zip(task.label_names, TaskEncoder(task, model).label_token_ids, strict=True)),
        k=k,
    )


def _text_of(model: FrozenModel, token_id: int) -> str:
    """The token's text; a part of a character as the tokenizer writes it."""
    text = str(model.tokenizer.decode([token_id]))
    return (
        str(model.tokenizer.convert_ids_to_tokens(token_id))
        if "\N{REPLACEMENT CHARACTER}" in text or not text
        else text
    )
