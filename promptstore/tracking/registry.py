"""MLflow's model registry as a mirror of the log, for people who live there. The log stays the truth."""

import re
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from promptstore.core.ref import PromptRef
from promptstore.core.state import PromptVersion, TaskState
from promptstore.core.task import TaskSpec
from promptstore.store.bundle import write_bundle
from promptstore.store.prompt_store import PromptStore
from promptstore.tracking.events import RunEnded, RunStarted
from promptstore.tracking.mlflow_address import default_artifact_root
from promptstore.tracking.mlflow_sink import MlflowSink, connect, translated
from promptstore.tracking.port import RunHeader

LOADER = "promptstore.runtime.pyfunc"
MIRRORED = "mirrored."
LEGAL_ALIAS = re.compile(r"(?!v\d+$|latest$)[\w-]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AliasRequest:
    """Somebody pointed an alias at a version on MLflow's page. It was pointed back; what they want is known now."""

    ref: PromptRef
    alias: str


@dataclass(slots=True)
class MirrorReport:
    """registered: versions that are new in MLflow. moved: aliases set to what the log says. requests: wishes found.

    skipped: aliases whose names MLflow does not allow.
    """

    registered: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    requests: list[AliasRequest] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = f"{len(self.registered)} versions registered, {len(self.moved)} aliases moved"
        return f"{said}, {len(self.requests)} requests found"


class RegistryMirror:
    """Keeps a registered model for each task: a version for each version, an alias for each alias.

    base_model: how `mlflow models serve` finds the base model, as the setting PROMPTSTORE_MODEL names it.
    """

    def __init__(self, uri: str, *, base_model: str, artifact_root: str | None = None) -> None:
        self._uri = uri
        self._base_model = base_model
        self._sink = MlflowSink(uri, artifact_root=artifact_root)
        self._connection: Any = None

    def sync(self, store: PromptStore, tasks: Iterable[str] | None = None) -> MirrorReport:
        """Bring MLflow to the state of the log; safe to stop and to repeat. tasks: only these.

        Raises:
            TrackingUnavailableError: MLflow cannot be reached. CorruptError: a version's bytes are damaged.
        """
        report = MirrorReport()
        state = store.refresh()
        with translated(self._uri):
            for name in sorted(state.tasks if tasks is None else tasks):
                registered = self._versions(store, state.tasks[name], report)
                self._aliases(state.tasks[name], registered, state.protected_aliases, report)
        return report

    @property
    def _client(self) -> Any:
        if self._connection is None:
            self._connection = connect(self._uri)
        return self._connection

    def _versions(self, store: PromptStore, task: TaskState, report: MirrorReport) -> dict[int, str]:
        """MLflow's version number for each of ours that it has, after what was missing was added."""
        self._ensure_model(task.name)
        found: dict[str, str] = {}
        for each in self._client.search_model_versions(f"name='{task.name}'"):
            number = str(each.version)
            if (digest := each.tags.get("digest")) and int(number) < int(found.get(digest, "1000000000")):
                found[digest] = number
        for version in task.versions:
            if version.digest not in found and not version.is_expired:
                found[version.digest] = self._register(store, version)
                report.registered.append(str(version))
        return {version.number: found[version.digest] for version in task.versions if version.digest in found}

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(
                name, tags={"source": "promptstore"}, description=f"Soft prompts for {name}, mirrored from the log."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _register(self, store: PromptStore, version: PromptVersion) -> str:
        from mlflow import pyfunc

        pulled = store.pull(PromptRef(version.task, number=version.number), for_model=None)
        run_id = self._run(version, pulled.manifest.provenance.mlflow_run)
        with tempfile.TemporaryDirectory(prefix="promptstore-") as folder:
            bundle = Path(folder) / "prompt.bundle"
            bundle.write_bytes(write_bundle(pulled, store.state.store_id))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it asks for an example, which would open the base model
                pyfunc.save_model(
                    path=f"{folder}/model",
                    loader_module=LOADER,
                    data_path=str(bundle),
                    model_config={"model": self._base_model},
                    pip_requirements=[f"promptstore[serving]=={installed_version('promptstore')}"],
                    signature=_signature(pulled.manifest.task),
                    metadata={"digest": version.digest, "base_model": pulled.manifest.fingerprint.name},
                )
            self._client.log_artifacts(run_id, f"{folder}/model", "model")
        source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
        metrics = {name: f"{value:.6g}" for name, value in pulled.manifest.metrics.items()}
        created = self._client.create_model_version(
            version.task,
            source,
            run_id=run_id,
            description=f"{version}, published by {version.actor} at {version.at}",
            tags={"version": str(version), "digest": version.digest, "actor": version.actor, **metrics},
        )
        return str(created.version)

    def _run(self, version: PromptVersion, wanted: str | None) -> str:
        """The run that made the version, or one of its own if there is none here: MLflow keeps artifacts by run."""
        from mlflow.exceptions import MlflowException

        if wanted is not None:
            try:
                if self._client.get_run(wanted).info.lifecycle_stage == "active":
                    return wanted
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        header = RunHeader(
            f"registry/{version.task}/{version.digest}",
            f"promptstore/{version.task}",
            str(version),
            tags={"task": version.task, "role": "registry", "version": str(version), "digest": version.digest},
        )
        self._sink.send(RunStarted(header, at_ms=0))
        self._sink.send(RunEnded(header.key, "FINISHED", at_ms=0))
        return str(self._sink.run_id(header.key))

    def _aliases(
        self, task: TaskState, registered: dict[int, str], protected: frozenset[str], report: MirrorReport
    ) -> None:
        model = self._client.get_registered_model(task.name)
        told = {name.removeprefix(MIRRORED): value for name, value in model.tags.items() if name.startswith(MIRRORED)}
        shown = {alias: str(number) for alias, number in model.aliases.items()}  # text or number, as the store likes
        numbers = {theirs: ours for ours, theirs in registered.items()}
        for alias in sorted({*task.aliases, *told, *(shown.keys() & protected)}):
            if not LEGAL_ALIAS.fullmatch(alias):
                report.skipped.append(f"{task.name}@{alias}")
                continue
            is_, was = shown.get(alias), told.get(alias)
            wanted = registered.get(task.aliases[alias]) if alias in task.aliases else None
            if is_ not in {None, wanted, was} and (number := numbers.get(str(is_))) is not None:
                report.requests.append(AliasRequest(PromptRef(task.name, number=number), alias))
            self._point(task.name, alias, is_, was, wanted, report)

    def _point(
        self, model: str, alias: str, is_: str | None, was: str | None, wanted: str | None, report: MirrorReport
    ) -> None:
        """The alias first, then the note of it: stopped in between, the next pass finds nothing to wonder about."""
        if wanted is None:
            if is_ is not None:
                self._client.delete_registered_model_alias(model, alias)
                report.moved.append(f"{model}@{alias}")
            if was is not None:
                self._client.delete_registered_model_tag(model, f"{MIRRORED}{alias}")
            return
        if is_ != wanted:
            self._client.set_registered_model_alias(model, alias, wanted)
            report.moved.append(f"{model}@{alias}")
        if was != wanted:
            self._client.set_registered_model_tag(model, f"{MIRRORED}{alias}", wanted)


def _signature(task: TaskSpec) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    return ModelSignature(inputs=Schema([ColSpec("string", name) for name in task.template_fields]))


def open_mirror(uri: str, *, base_model: str, artifact_root: str | None = None) -> RegistryMirror:
    """A mirror in the MLflow at `uri`; as `open_tracker` says, a database on a server needs an `artifact_root`."""
    return RegistryMirror(uri, base_model=base_model, artifact_root=artifact_root or default_artifact_root(uri))
