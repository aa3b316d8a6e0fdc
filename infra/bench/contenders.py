"""Two registries of prompts, as their users use them: promptstore, and the MLflow model registry on SQLite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from promptstore.core.prompt import SoftPrompt
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.store_samples import sample_task
from promptstore.wiring import open_prompt_store

TASK = "sst2"
ALIAS = "production"


class Contender(Protocol):
    """What is compared. turn: which prompt of the list it was given; each is published once."""

    def publish_and_promote(self, turn: int) -> object: ...

    def resolve(self, turn: int) -> object: ...

    def pull(self, turn: int) -> object:
        """The numbers of what is in production, from a warm local cache."""

    def fetch(self, turn: int) -> object:
        """The same without a cache."""


class Promptstore:
    """A store as wiring makes it, its writes durable when a call returns. Reads come from the state last seen."""

    def __init__(self, settings: Settings, prompts: Sequence[SoftPrompt]) -> None:
        self._store = open_prompt_store(settings)
        self._uncached = PromptStore(self._store.ledger, self._store.ledger.objects)
        self._prompts = prompts
        self._task = sample_task(TASK)
        self._ref = f"{TASK}@{ALIAS}"

    def publish_and_promote(self, turn: int) -> None:
        self._store.publish(self._prompts[turn], self._task, alias=ALIAS, force=True, reason="benchmark")

    def resolve(self, _turn: int) -> object:
        return self._store.resolve(self._ref)

    def pull(self, _turn: int) -> object:
        return self._store.pull(self._ref, for_model=self._prompts[0].fingerprint)

    def fetch(self, _turn: int) -> object:
        return self._uncached.pull(self._ref, for_model=self._prompts[0].fingerprint)

    def look_and_resolve(self, _turn: int) -> object:
        """With a poll first, so that the answer is as fresh as one from a database."""
        self._store.refresh()
        return self._store.resolve(self._ref)


class MlflowRegistry:
    """MLflow's own client, spared whatever it can be spared.

    One run holds the artifacts of all versions, their files are written before the clock runs, nothing is waited for
    that is there at once, and the cache of files that MLflow does not have is given to it.
    """

    def __init__(self, client: Any, name: str, artifacts: str, folder: Path, prompts: Sequence[SoftPrompt]) -> None:
        """artifacts: URL of the place for them. folder: for the files to be uploaded and the cache."""
        self._client = client
        self._name = name
        self._cache = folder / "cache"
        self._run = client.create_run(client.create_experiment(name, artifact_location=artifacts)).info
        client.create_registered_model(name)
        self._files = [_saved(folder / f"prompt-{turn}", prompt) for turn, prompt in enumerate(prompts)]

    def publish_and_promote(self, turn: int) -> None:
        place = f"version-{turn}"
        self._client.log_artifact(self._run.run_id, str(self._files[turn]), place)
        source = f"{self._run.artifact_uri}/{place}"
        made = self._client.create_model_version(self._name, source, self._run.run_id, await_creation_for=0)
        self._client.set_registered_model_alias(self._name, ALIAS, made.version)

    def resolve(self, _turn: int) -> Any:
        return self._client.get_model_version_by_alias(self._name, ALIAS)

    def pull(self, turn: int) -> object:
        version = self.resolve(turn)
        folder = self._cache / str(version.version)
        if not folder.exists():
            _download(version.source, folder)
        return np.load(folder / "prompt.npy")

    def fetch(self, turn: int) -> object:
        return np.load(_download(self.resolve(turn).source, None))


def _saved(folder: Path, prompt: SoftPrompt) -> Path:
    folder.mkdir(parents=True)
    np.save(folder / "prompt.npy", prompt.embeddings)
    return folder / "prompt.npy"


def _download(source: str, folder: Path | None) -> Path:
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=f"{source}/prompt.npy", dst_path=folder and str(folder)))
