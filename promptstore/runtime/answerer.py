"""What takes jobs and delivers their answers: the model of this process, or a server that runs it elsewhere."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from promptstore.runtime.job import Job

Result = TypeVar("Result")


class Answerer(Protocol):
    """`Scheduler` answers with this process's model, `VllmAnswerer` through vLLM. Every method is for any thread."""

    @property
    def queued(self) -> int:
        """Jobs that wait."""

    @property
    def running(self) -> int:
        """Answers being generated."""

    @property
    def is_alive(self) -> bool:
        """The thread behind it runs; otherwise the process is to be restarted."""

    @property
    def problem(self) -> str | None:
        """Why no job can be answered now; `None` while they can."""

    def start(self) -> None: ...

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes all of `jobs` or none.

        Raises:
            OverloadedError: they do not fit into the queue.
            NotServingError: it is draining, or `problem` is not `None`.
        """

    def check(self, count: int) -> None:
        """Raises what `submit` would, if `count` jobs came now."""

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Runs `work` on the thread that prepares prompts."""

    def drain(self, timeout_s: float) -> bool:
        """Takes no more jobs and waits until all are answered. Returns whether they were, within the time."""

    def close(self) -> None:
        """Stops; whatever still waits is told that the server is going."""
