"""What clients of a server ask, and what their answers come to."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any

OK, TOO_MANY, UNAVAILABLE = 200, 429, 503
# No answer at all: the connection failed, or was cut.
NO_ANSWER = 0


@dataclass(frozen=True, slots=True)
class Load:
    """bodies: asked for in turn, again from the first after the last.

    clients: that ask, get their answer and ask again; none for an open loop, which asks `per_s` requests a second at
    times that are set beforehand, whether or not earlier ones were answered.
    requests: in all; `None` until told to stop.
    """

    url: str
    bodies: Sequence[Mapping[str, Any]]
    clients: int = 0
    per_s: float = 0.0
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Times are the system's monotonic clock, in seconds, which all processes of a machine share.

    due_s: when it was to be sent; an open loop may be late, and a request waits from then on. done_s: its answer's end.
    version: that header and body name; empty without an answer, or if they do not agree. body: which of the bodies.
    """

    due_s: float
    sent_s: float
    done_s: float
    status: int
    version: str
    probabilities: Mapping[str, float]
    body: int

    @property
    def latency_s(self) -> float:
        return self.done_s - self.due_s


class Clients:
    """A process of clients that have begun to ask."""

    def __init__(self, load: Load) -> None:
        command = [sys.executable, "-m", "infra.bench.serving_clients"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the clients have no pipes")
        self._process, self._input, self._output = process, process.stdin, process.stdout
        self._input.write(json.dumps(asdict(load)) + "\n")
        self._input.flush()
        # The rest comes at the end. A process that failed says nothing, and `end` says so.
        self._output.readline()

    def end(self) -> list[Asked]:
        """All requests, in the order they were due. Waits for the answers; an endless load is told to stop first.

        Raises:
            RuntimeError: the process failed.
        """
        self._input.close()
        said = self._output.read()
        self._output.close()
        if (code := self._process.wait()) != 0:
            raise RuntimeError(f"the clients ended with {code}; the measurement is void")
        return sorted((Asked(*each) for each in json.loads(said)), key=lambda each: each.due_s)


def ask(load: Load) -> list[Asked]:
    """All requests of a load that has an end, in the order they were due."""
    return Clients(load).end()


def p99(seconds: Sequence[float]) -> float:
    """The 99th percentile; of a single value, that value.

    Raises:
        RuntimeError: there are no values.
    """
    if not seconds:
        raise RuntimeError("nothing was measured; the measurement is void")
    return quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else seconds[0]


def answered(asked: Sequence[Asked]) -> list[Asked]:
    return [each for each in asked if each.status == OK]


def share(asked: Sequence[Asked], *statuses: int) -> float:
    """Of the requests, those that ended with one of `statuses`."""
    return sum(each.status in statuses for each in asked) / len(asked)


def throughput(asked: Sequence[Asked]) -> float:
    """Answers per second, from the first request to the last answer."""
    good = answered(asked)
    if not good:
        raise RuntimeError("nothing was answered; the measurement is void")
    return len(good) / (max(each.done_s for each in good) - min(each.sent_s for each in asked))


def offered_rate(asked: Sequence[Asked]) -> float:
    """Requests per second, as they were sent."""
    sent = sorted(each.sent_s for each in asked)
    return (len(sent) - 1) / (sent[-1] - sent[0])


def goodput(asked: Sequence[Asked]) -> float:
    """Answers per second while requests came; those that came out afterwards do not count."""
    sent = [each.sent_s for each in asked]
    begin, end = min(sent), max(sent)
    return sum(each.done_s <= end for each in answered(asked)) / (end - begin)
