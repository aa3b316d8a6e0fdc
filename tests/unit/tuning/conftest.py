"""Tiny models on one thread: waiting for a second one costs more than it saves, and on a busy machine a hundred times."""

import torch

torch.set_num_threads(1)
