"""The first values of a prompt: those of Lester et al. 2021, section 3.2, and training rows with their answers."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.examples import Example, ExampleSet
from promptstore.tuning.initialiser import COMMON_TOKENS, parse_initialiser

# Of the training rows, the shortest share: rows that fit into few virtual tokens.
SHORTEST = 0.2
# Stands between a row's answer and what follows it.
GAP = "\n\n"


def initialise(model: FrozenModel, task: TaskSpec, config: TuneConfig, train: ExampleSet) -> Tensor:
    """The prompt that a fit begins with: float32 [P, H] on the model's device, decided by `config.seed` and `train`.

    Raises:
        InvalidInputError: the initialiser does not fit the task or model; `version:` and `nearest` are resolved by the
            caller, who knows the store and gives the fit a warm start.
        NotFoundError: there is no such file.
    """
    initialiser = parse_initialiser(config.initialise)
    shape = (config.num_virtual_tokens, model.hidden_size)
    generator = torch.Generator().manual_seed(config.seed)
    match initialiser.kind:
        case "random":
            mean, deviation = _moments(model)
            values = torch.randn(shape, generator=generator) * deviation + mean
        case "uniform":
            values = (torch.rand(shape, generator=generator) * 2 - 1) * initialiser.number
        case "vocabulary":
            values = _sampled(model, shape[0], int(initialiser.number), generator)
        case "examples":
            values = _examples(model, task, shape[0], train, generator)
        case "labels":
            values = _labels(model, task, shape[0], generator)
        case "text":
            values = _text(model, initialiser.argument, shape[0])
        case "file":
            values = read_prompt_file(Path(initialiser.argument).expanduser(), shape)
        case "version" | "nearest":
            raise InvalidInputError(f"initialise = {config.initialise!r} needs a store: give the fit a warm start")
    return values.to(model.device)


def read_prompt_file(path: Path, shape: tuple[int, int]) -> Tensor:
    """The only tensor in a .npy or .safetensors file: our own payloads, and adapters of PEFT's prompt tuning.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: not such a file, several tensors, or another shape than `shape`.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path} to start the prompt from")
    try:
        tensors = [torch.from_numpy(np.load(path))] if path.suffix == ".npy" else list(load_file(path).values())
    except (SafetensorError, ValueError, OSError, EOFError) as error:
        raise InvalidInputError(f"{path} is neither a .npy array nor a safetensors file: {error}") from error
    if len(tensors) != 1 or tuple(tensors[0].shape) != shape:
        found = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise InvalidInputError(f"{path} holds {found}, expected one tensor {list(shape)}: virtual tokens, hidden size")
    return tensors[0].float()


def _moments(model: FrozenModel, tokens: int = 2048) -> tuple[float, float]:
    """Mean and deviation of the embeddings as the network sees them, from evenly spaced rows of the table."""
    ids = torch.linspace(0, model.vocabulary_size - 1, min(tokens, model.vocabulary_size)).long()
    values = _embedded(model, ids)
    return float(values.mean()), float(values.std())


def _sampled(model: FrozenModel, count: int, most_common: int, generator: torch.Generator) -> Tensor:
    """Embeddings of different tokens, drawn from the most common: tokenizers number them in order of frequency."""
    special = set(model.tokenizer.all_special_ids)
    candidates = [index for index in range(len(model.tokenizer)) if index not in special][:most_common]
    order = torch.randperm(len(candidates), generator=generator)
    drawn = order.repeat(-(-count // len(candidates)))[:count]
    return _embedded(model, torch.tensor(candidates)[drawn])


def _labels(model: FrozenModel, task: TaskSpec, count: int, generator: torch.Generator) -> Tensor:
    """One virtual token for each label, the mean of its verbaliser's tokens; the others sampled, as in the paper."""
    means = _label_means(model, task, count)
    return torch.cat([*means, _sampled(model, count - len(means), COMMON_TOKENS, generator)])


def _label_means(model: FrozenModel, task: TaskSpec, count: int) -> list[Tensor]:
    """Of the first `count` labels, [1, H] each."""
    ids = [_verbaliser_ids(model, task, index) for index in range(min(count, len(task.labels)))]
    return [_embedded(model, torch.tensor(each)).mean(dim=0, keepdim=True) for each in ids]


def _examples(model: FrozenModel, task: TaskSpec, count: int, train: ExampleSet, generator: torch.Generator) -> Tensor:
    """One virtual token for each label, then training rows with their answers, as few-shot prompts have them.

    A prompt that stands after the input has no place for rows, and rows may be empty: it begins as `labels` does.
    """
    if train.is_prompt_after:
        return _labels(model, task, count, generator)
    means = _label_means(model, task, count)
    ids = _demonstrations(model, task, count - len(means), train, generator)
    if not ids:
        return _labels(model, task, count, generator)
    return torch.cat([*means, _embedded(model, torch.tensor(ids))])


def _demonstrations(
    model: FrozenModel, task: TaskSpec, count: int, train: ExampleSet, generator: torch.Generator
) -> list[int]:
    """`count` tokens, or none: the end of a text of drawn short rows, no two neighbours of one label.

    The last row is whole if it fits. The text is repeated if there are too few rows.
    """
    by_length = sorted(train.examples, key=lambda example: len(example.input_ids) + len(example.answer_ids))
    short = by_length[: max(1, int(len(by_length) * SHORTEST))]
    ids: list[int] = []
    behind: Example | None = None
    for place in torch.randperm(len(short), generator=generator).tolist():
        if len(ids) >= count:
            break
        if not task.labels or behind is None or short[place].label != behind.label:
            behind = short[place]
            ids = [*_demonstration(model, task, behind), *ids]
    repeated = ids * -(-count // len(ids)) if ids else []
    return repeated[len(repeated) - count :]


def _demonstration(model: FrozenModel, task: TaskSpec, example: Example) -> list[int]:
    answer = _verbaliser_ids(model, task, example.label) if task.labels else example.answer_ids
    special = set(model.tokenizer.all_special_ids)
    return [index for index in (*example.input_ids, *answer, *_token_ids(model, GAP)) if index not in special]


def _verbaliser_ids(model: FrozenModel, task: TaskSpec, label: int) -> list[int]:
    return _token_ids(model, f" {task.labels[label].verbaliser.strip()}")


def _text(model: FrozenModel, text: str, count: int) -> Tensor:
    ids = _token_ids(model, text)
    if not ids:
        raise InvalidInputError(f"initialiser text {text!r} has no token for this model")
    return _embedded(model, torch.tensor((ids * -(-count // len(ids)))[:count]))


def _token_ids(model: FrozenModel, text: str) -> list[int]:
    return [int(index) for index in model.tokenizer(text, add_special_tokens=False)["input_ids"]]


def _embedded(model: FrozenModel, ids: Tensor) -> Tensor:
    return model.embed(ids[None].to(model.device))[0].float().cpu()
