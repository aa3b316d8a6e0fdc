"""The peer: PEFT's prompt tuning on the same network, with the same prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model

from promptstore.core.prompt import SoftPrompt
from promptstore.lm.frozen import FrozenModel


class PeftServer:
    """Answers as PEFT's users do: `set_adapter`, then the model. Labels are read off the last position's logits.

    It is spared what it can be: the network computes logits for that position alone, and its head sees one contiguous
    matrix (on a CPU a bf16 product with a strided operand is a hundred times slower, and for one row in three
    dimensions torch copies the head's weights first).
    """

    def __init__(self, model: FrozenModel, prompts: Sequence[SoftPrompt], label_token_ids: Sequence[int]) -> None:
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompts[0].num_virtual_tokens)
        self._labels = list(label_token_ids)
        self._pad = model.pad_token_id
        network: Any = model.network
        head = network.get_output_embeddings()
        head.register_forward_pre_hook(lambda _, given: (given[0].reshape(-1, model.hidden_size).contiguous(),))
        head.register_forward_hook(lambda *call: call[-1][:, None])
        self._model: Any = get_peft_model(network, config, adapter_name="prompt-0")
        for number, prompt in enumerate(prompts):
            if number:
                self._model.add_adapter(f"prompt-{number}", config)
            weight = self._model.prompt_encoder[f"prompt-{number}"].embedding.weight
            weight.data.copy_(torch.tensor(prompt.embeddings))
        self._model.eval()

    @torch.inference_mode()
    def answer(self, number: int, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Label logits of inputs under one prompt, as one left-padded batch."""
        self._model.set_adapter(f"prompt-{number}")
        width = max(map(len, inputs))
        ids = torch.tensor([[self._pad] * (width - len(each)) + list(each) for each in inputs])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in inputs])
        logits = self._model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits
        if logits.shape[1] != 1:
            raise RuntimeError(f"the peer computed logits for {logits.shape[1]} positions; the measurement is void")
        return [[float(value) for value in row] for row in logits[:, -1, self._labels]]
