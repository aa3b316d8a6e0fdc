"""Kernels that are planned for each shape stay out, on a GPU alone and within the block alone."""

from typing import Any

import pytest
import torch

from promptstore.lm.attention import attention_of_any_shape


@pytest.mark.parametrize(("device", "is_allowed"), [("cpu", True), ("cuda", False)])
def test_cudnn_computes_no_attention_on_a_gpu(device: str, is_allowed: bool) -> None:
    allowed: Any = torch.backends.cuda
    assert allowed.cudnn_sdp_enabled()
    with attention_of_any_shape(torch.device(device)):
        assert allowed.cudnn_sdp_enabled() is is_allowed
        assert allowed.mem_efficient_sdp_enabled()
        assert allowed.math_sdp_enabled()
    assert allowed.cudnn_sdp_enabled()
