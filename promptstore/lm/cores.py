"""Cores of a CPU for threads that compute side by side."""

import ctypes
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_PAUSE_SOFT = 1


@dataclass(frozen=True, slots=True)
class Cores:
    """Those that torch computes on, dealt out among threads of this process.

    A thread that computes on several cores has helpers of its own from OpenMP, which stay with it. GNU's OpenMP lets
    helpers wait for the next operation by turning round only while there are no more of them in the process than cores;
    beyond that each goes to sleep after every operation, and to be woken costs more than many operations take. So a
    thread that does not compute for now keeps none.

    count: as many as torch was given (`OMP_NUM_THREADS`).
    """

    count: int = field(default_factory=torch.get_num_threads)

    def take(self, count: int) -> None:
        """The calling thread computes on so many from now on."""
        torch.set_num_threads(count)

    def give_back(self) -> None:
        """Ends the calling thread's helpers; they come back with its next operation on several cores."""
        _end_helpers()


def _find_end_helpers() -> Callable[[], None]:
    """OpenMP 5.0's `omp_pause_resource`, if torch comes with GNU's library: another one has its own way to wait."""
    library = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    try:
        gomp = ctypes.CDLL(str(library))
        pause, host = gomp.omp_pause_resource, int(gomp.omp_get_initial_device())
    except (OSError, AttributeError) as error:
        logger.debug("OpenMP's helper threads stay: %s", error)
        return lambda: None
    return lambda: pause(_PAUSE_SOFT, host)


_end_helpers = _find_end_helpers()
