"""What happens when a batch fails: it is tried again in halves, so that what cannot be answered fails alone."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from promptstore.runtime.job import Failed, Job

AnyJob = TypeVar("AnyJob", bound=Job)


def divide_and_retry(jobs: Sequence[AnyJob], run: Callable[[Sequence[AnyJob]], None]) -> None:
    """Runs `jobs` as one batch; after a failure in halves, down to single jobs, which are told their error.

    `run` must have changed nothing when it raises. Out of memory, a single job is tried once more.
    """
    if not jobs:
        return
    try:
        run(jobs)
    except Exception as error:  # noqa: BLE001 - the boundary between one batch and the server
        if is_out_of_memory(error):
            free_memory()
        if len(jobs) > 1:
            middle = len(jobs) // 2
            divide_and_retry(jobs[:middle], run)
            divide_and_retry(jobs[middle:], run)
        elif is_out_of_memory(error):
            _run_once_more(jobs[0], run)
        else:
            jobs[0].deliver(Failed(error))


def _run_once_more(job: AnyJob, run: Callable[[Sequence[AnyJob]], None]) -> None:
    try:
        run([job])
    except Exception as error:  # noqa: BLE001 - as above
        job.deliver(Failed(error))


def is_out_of_memory(error: BaseException) -> bool:
    is_from_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or is_from_cpu


def free_memory() -> None:
    """Gives back what Python and the device's allocator keep without need."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
