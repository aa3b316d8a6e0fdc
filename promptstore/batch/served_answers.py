"""Answers from a running server, through its client. Needs nothing of torch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from promptstore.batch.answers import Answer, ScoredVersion
from promptstore.client import Client
from promptstore.core.ref import DIGEST_PREFIX, PromptRef
from promptstore.errors import CorruptError
from promptstore.tuning.rows import Row

# Well below what a server takes in one request: 256 texts, and 1 MiB of JSON, where a character may need 12 bytes.
MOST_TEXTS = 64
MOST_CHARACTERS = 80_000
# Texts that are generated at a time; the server batches them.
GENERATED_AT_A_TIME = 16


class ServedAnswers:
    """Asks by digest once a version is resolved, so that a promotion on the way changes nothing."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def resolve(self, ref: PromptRef) -> ScoredVersion:
        """As `Answers.resolve`.

        Raises:
            NotServingError: no server answers. CorruptError: it is none that scoring can use.
        """
        said = self._client.model(str(ref))
        try:
            about = said["promptstore"]
            return ScoredVersion(
                task=about["task"],
                number=about["version"],
                digest=about["digest"].removeprefix(DIGEST_PREFIX),
                kind=about["kind"],
                fields=tuple(about["fields"]),
                labels=tuple(about["labels"]),
                target_field=about["target_field"],
                metric=about["metric"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptError(
                f"the server does not describe {ref} as this promptstore expects ({error!r}); use the same version of "
                "promptstore on both sides"
            ) from error

    def answer(self, version: ScoredVersion, rows: Sequence[Row]) -> list[Answer]:
        inputs = [{name: row[name] for name in version.fields} for row in rows]
        if version.kind == "generation":
            return self._generated(version, inputs)
        return [
            Answer(each.label, each.probabilities)
            for part in _parts(inputs)
            for each in self._client.classify(str(version.ref), part)
        ]

    def _generated(self, version: ScoredVersion, inputs: Sequence[Row]) -> list[Answer]:
        pool = ThreadPoolExecutor(GENERATED_AT_A_TIME)
        try:
            texts = pool.map(lambda each: self._client.complete(str(version.ref), each).text, inputs)
            return [Answer(text) for text in texts]
        finally:
            pool.shutdown(cancel_futures=True)


def _parts(inputs: Sequence[Row]) -> Iterator[list[Row]]:
    """Requests of bounded size, in order."""
    part: list[Row] = []
    characters = 0
    for each in inputs:
        size = sum(map(len, each.values()))
        if part and (len(part) == MOST_TEXTS or characters + size > MOST_CHARACTERS):
            yield part
            part, characters = [], 0
        part.append(each)
        characters += size
    if part:
        yield part
