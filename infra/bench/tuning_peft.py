"""The peer: PEFT's prompt tuning with transformers' Trainer, as PEFT's own guide sets it up."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.examples import encode_rows
from promptstore.tuning.rows import Rows


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """The guide's values: text initialisation, AdamW at 3e-2 with linear decay, no warm-up."""

    num_virtual_tokens: int = 20
    init_text: str = "Classify the text:"
    learning_rate: float = 3e-2
    batch_size: int = 16
    seed: int = 0
    dtype: torch.dtype = torch.float32
    group_by_length: bool = False


@dataclass(frozen=True, slots=True)
class PeftRun:
    """prompt: float32 [P, H]. step_s, step_cpu_s: each step by the wall clock and in CPU time."""

    prompt: npt.NDArray[np.float32]
    step_s: tuple[float, ...]
    step_cpu_s: tuple[float, ...]

    @property
    def steady_step_cpu_s(self) -> float:
        """The mean without the first two steps, which are still warming up."""
        return float(np.mean(self.step_cpu_s[2:]))


def train_with_peft(
    folder: str, model: FrozenModel, task: TaskSpec, rows: Rows, settings: PeftSettings, steps: int
) -> PeftRun:
    """One prompt by PEFT. folder: the model's files. model: ours, for the same token ids on both sides."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=settings.dtype)
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=settings.init_text,
        num_virtual_tokens=settings.num_virtual_tokens,
        tokenizer_name_or_path=folder,
    )
    torch.manual_seed(settings.seed)
    peft = get_peft_model(network, config)
    clock = _StepClock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=peft,
            args=_arguments(scratch, settings, steps),
            train_dataset=_rows(model, task, rows, settings.num_virtual_tokens),
            data_collator=_Collator(_pad_id(folder)),
            callbacks=[clock],
        )
        trainer.train()
    prompt = peft.get_prompt_embedding_to_save(adapter_name="default")
    return PeftRun(prompt.detach().float().cpu().numpy(), tuple(clock.seconds), tuple(clock.cpu_seconds))


def _arguments(scratch: str, settings: PeftSettings, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        max_steps=steps,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        seed=settings.seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def _rows(model: FrozenModel, task: TaskSpec, rows: Rows, num_virtual_tokens: int) -> list[dict[str, list[int]]]:
    """Input and label token, the loss on the label alone."""
    examples = encode_rows(task, model, rows, num_virtual_tokens=num_virtual_tokens).examples
    return [
        {
            "input_ids": [*example.input_ids, *example.answer_ids],
            "labels": [-100] * len(example.input_ids) + list(example.answer_ids),
        }
        for example in examples
    ]


def _pad_id(folder: str) -> int:
    found = AutoTokenizer.from_pretrained(folder).pad_token_id
    return 0 if found is None else int(found)


class _Collator:
    """Dynamic padding to the longest row of the batch, on the right."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[int], filling: int) -> list[int]:
            return values + [filling] * (width - len(values))

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], self._pad_id) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
            "labels": torch.tensor([padded(row["labels"], -100) for row in rows]),
        }


class _StepClock(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._began = self._began_cpu = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)
        self.cpu_seconds.append(time.process_time() - self._began_cpu)
