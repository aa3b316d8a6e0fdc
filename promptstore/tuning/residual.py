"""A prompt seen through a small network with a way around it (Razdaibiedina et al. 2023), folded away when it is used.

    prompt = base + up · relu(down · norm(base))

shared by all virtual tokens. Where the paper normalises behind the network, this normalises before it, so that `up` can
begin at zero: the fit starts from the initialiser's prompt exactly. What is evaluated, kept as best and published is
always the sum, a plain [P, H].
"""

import torch
from torch import Tensor

# The network's weights learn so much more slowly than the prompt: AdamW moves every weight by the learning rate, and
# prompts want rates that are fifty times what a network bears.
RATE = 0.02


def start_residual(first: Tensor, width: int, seed: int) -> dict[str, Tensor]:
    """Parameters whose `fold` is `first`. first: float32 [P, H]. width: of the hidden layer."""
    hidden_size = first.shape[1]
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn((hidden_size, width), generator=generator) * hidden_size**-0.5
    return {
        "base": first.detach().clone(),
        "down": down.to(first),
        "up": first.new_zeros((width, hidden_size)),
    }


def fold(tensors: dict[str, Tensor]) -> Tensor:
    """The prompt that the parameters stand for: [P, H]."""
    base = tensors["base"]
    normed = torch.nn.functional.layer_norm(base, base.shape[-1:])
    return base + torch.relu(normed @ tensors["down"]) @ tensors["up"]


def gradients(tensors: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
    """From the gradient of the prompt, [P, H], to that of each parameter."""
    with torch.enable_grad():
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        found = torch.autograd.grad(fold(leaves), list(leaves.values()), gradient)
    return dict(zip(leaves, found, strict=True))
