"""From the host's numbers to a device's, without waiting for the device."""

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device | str) -> Tensor:
    """values: numbers in lists, a numpy array or a tensor of the CPU, which the caller must not change afterwards.

    A plain copy to a GPU ends when all that was launched before it has ended, so a step could not be prepared while
    the one before it is computed; from pinned memory it takes its turn there.
    """
    host = torch.as_tensor(values)
    if torch.device(device).type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
