"""Tiny models on one thread: waiting for a second costs more than it saves, on a busy machine a hundred times."""

import torch

torch.set_num_threads(1)
