"""Where the demo keeps everything it writes, and what its child processes are told about it."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from promptstore.core.digest import sha256_hex
from promptstore.errors import InvalidInputError

ENVIRONMENT_FILE = "env.sh"
NOTHING_SENT = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@dataclass(frozen=True, slots=True)
class DemoPlace:
    """One folder with the store, the runs, the flows' database, the data and every log.

    variant: a quick demo, or one of another model, has tasks and versions that are not to be measured against those of
    the others, so it has a store of its own.
    """

    folder: Path
    variant: str = ""

    @classmethod
    def make(cls, folder: Path, *, quick: bool, model: str | None) -> "DemoPlace":
        """Raises InvalidInputError: the folder cannot be made or written."""
        digest = sha256_hex(model.encode())[:8] if model else ""
        place = cls(folder.absolute(), "".join(f"-{part}" for part in ("quick" * quick, digest) if part))
        try:
            for each in (place.logs, place.data, place.prefect, place.state):
                each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"demo folder {folder}: {error.strerror}; choose another with --folder") from error
        return place

    @property
    def store(self) -> Path:
        return self.folder / f"store{self.variant}"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def data(self) -> Path:
        return self.folder / f"tasks{self.variant}"

    @property
    def prefect(self) -> Path:
        return self.folder / "prefect"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def write_environment(self, model: str | None) -> None:
        """A file for a shell to read, so that every command afterwards works on what the demo left behind."""
        settings = self.environment("http://127.0.0.1:4200/api", model)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
        (self.folder / ENVIRONMENT_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def environment(self, prefect_api: str, model: str | None) -> dict[str, str]:
        """The settings of the demo's child processes; what the user set for models and devices stays."""
        chosen = {"PROMPTSTORE_MODEL": model} if model else {}
        return {
            **chosen,
            "PROMPTSTORE_STORE": str(self.store),
            "PROMPTSTORE_STATE_DIR": str(self.state),
            "PROMPTSTORE_ACTOR": "demo",
            "PROMPTSTORE_TEXT_PROMPT_BASELINE": "false",  # it would take as long as the quick demo's fit
            "PROMPTSTORE_MLFLOW_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "PREFECT_API_URL": prefect_api,
            "PREFECT_HOME": str(self.prefect),
            # The demo's processes share the CPU, and idle threads that spin, the default, halve everybody's speed.
            "OMP_WAIT_POLICY": "PASSIVE",
            **NOTHING_SENT,
        }
