"""A pass recorded once for each shape, with its backward pass, and replayed: two launches where it takes hundreds.

CUDA graphs, as `torch.cuda.make_graphed_callables` makes them (ADR 0045).
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

log = logging.getLogger(__name__)

# Recordings kept at a time. Each holds its inputs and outputs; what lies between them is one memory for all.
MOST_RECORDINGS = 16

Pass = Callable[..., Tensor]
Shapes = tuple[torch.Size, ...]


class RecordedPass:
    """Calls like `compute(*tensors)`; on a GPU, shapes that come back are recorded.

    compute: a function of its tensors alone. Calls whose first tensor takes a gradient are recorded, and what such a
    call returns is overwritten by the next one: its backward pass comes first. Where a process group is at work nothing
    is recorded, for its threads use the device as they like.
    """

    def __init__(self, compute: Pass) -> None:
        self._compute = compute
        self._seen: set[Shapes] = set()
        self._recordings: dict[Shapes, Pass] = {}
        self._may_record = True
        self._pool: Any = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        if not self._may_record or not _is_recordable(tensors[0]):
            return self._compute(*tensors)
        shapes = tuple(each.shape for each in tensors)
        if shapes not in self._seen:
            self._seen.add(shapes)
            return self._compute(*tensors)
        if shapes not in self._recordings:
            self._record(shapes, tensors)
        return self._recordings.get(shapes, self._compute)(*tensors)

    def forget(self) -> None:
        """Gives the memory of all recordings back; what comes again is recorded again."""
        self._recordings.clear()
        self._pool = None

    def _record(self, shapes: Shapes, tensors: tuple[Tensor, ...]) -> None:
        if len(self._recordings) == MOST_RECORDINGS:
            self.forget()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        inputs = tuple(each.detach().clone().requires_grad_(each.requires_grad) for each in tensors)
        try:
            # The plain call of these shapes has warmed up nearly all there is.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")  # none accumulates here
                recording: Any = torch.cuda.make_graphed_callables(
                    self._compute, inputs, num_warmup_iters=1, pool=self._pool
                )
            self._recordings[shapes] = recording
        except RuntimeError as error:
            log.warning("steps are not recorded, so each takes longer than it could: %s", error)
            self._may_record = False
            self.forget()


def _is_recordable(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.requires_grad and not torch.distributed.is_initialized()
