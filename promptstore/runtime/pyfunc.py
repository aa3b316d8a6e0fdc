"""What MLflow's `pyfunc` loads: a bundle, and the base model that it names, which is opened, not copied.

MLflow imports this module by the name that the registered model gives; nothing here imports MLflow.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptstore.core.manifest import Manifest
from promptstore.errors import InvalidInputError
from promptstore.lm.source import open_model
from promptstore.runtime.predictor import Prediction, Predictor
from promptstore.settings import load_settings
from promptstore.store.bundle import read_bundle


class PyfuncModel:
    """Answers a data frame, a list of texts or a list of rows."""

    def __init__(self, predictor: Predictor, manifest: Manifest) -> None:
        self._predictor = predictor
        self._task = manifest.task

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """Label and probabilities, or the text, of each row, in order.

        Raises:
            InvalidInputError: neither rows with the template's fields nor, for a template of one field, texts.
        """
        rows = [self._row(each) for each in _records(model_input)]
        return [self._told(each) for each in self._predictor.predict(rows)]

    def _row(self, value: Any) -> Mapping[str, str]:
        fields = self._task.template_fields
        if isinstance(value, str) and len(fields) == 1:
            return {fields[0]: value}
        if isinstance(value, Mapping):
            return {name: str(value[name]) for name in fields if name in value}
        raise InvalidInputError(
            f"task {self._task.name} takes rows with the fields {', '.join(fields)}; found {value!r}"
        )

    def _told(self, prediction: Prediction) -> dict[str, Any]:
        if self._task.kind == "generation":
            return {"text": prediction.text}
        return {"label": prediction.text, "probabilities": dict(prediction.probabilities)}


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PyfuncModel:
    """MLflow's hook. path: of a bundle. model_config: `model` names where the base model is; the setting by default."""
    bundle = read_bundle(Path(path).read_bytes())
    settings = load_settings(model=(model_config or {}).get("model"))
    model = open_model(settings.model, cache_dir=settings.cache_dir, device=settings.device, dtype=settings.dtype)
    return PyfuncModel(Predictor(model, bundle.manifest.task, bundle.prompt), bundle.manifest)


def _records(model_input: Any) -> Sequence[Any]:
    """Rows of a data frame as dictionaries; lists as they are."""
    if hasattr(model_input, "to_dict"):
        return list(model_input.to_dict(orient="records"))
    if isinstance(model_input, str | Mapping):
        return [model_input]
    return list(model_input)
