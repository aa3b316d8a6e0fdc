"""Answers from a model in this process."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from promptstore.batch.answers import Answer, ScoredVersion
from promptstore.core.ref import PromptRef
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.rows import Row

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel
    from promptstore.runtime.predictor import Predictor


class LocalAnswers:
    """The engine, without a server around it. open_model: called when the first row is to be answered."""

    def __init__(self, store: PromptStore, open_model: "Callable[[], FrozenModel]") -> None:
        self._store = store
        self._open_model = open_model
        self._predictors: dict[str, Predictor] = {}

    def resolve(self, ref: PromptRef) -> ScoredVersion:
        self._store.refresh()
        version = self._store.resolve(ref)
        return ScoredVersion.of(self._store.manifest(version.digest).task, version.number, version.digest)

    def answer(self, version: ScoredVersion, rows: Sequence[Row]) -> list[Answer]:
        """As `Answers.answer`.

        Raises:
            IncompatibleModelError: the version belongs to another model. InvalidInputError: a row cannot be encoded.
        """
        return [Answer(each.text, each.probabilities) for each in self._predictor(version).predict(rows)]

    def _predictor(self, version: ScoredVersion) -> "Predictor":
        if version.digest not in self._predictors:
            from promptstore.runtime.predictor import Predictor

            model = self._open_model()
            pulled = self._store.pull(version.ref, for_model=model.fingerprint)
            self._predictors[version.digest] = Predictor(model, pulled.manifest.task, pulled.prompt)
        return self._predictors[version.digest]
