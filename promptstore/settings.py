"""The only reader of the environment. Every setting is a variable with the prefix `PROMPTSTORE_`."""

from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from promptstore.errors import InvalidInputError


def _user_cache() -> Path:
    return platformdirs.user_cache_path("promptstore")


def _user_data() -> Path:
    return platformdirs.user_data_path("promptstore")


class Settings(BaseSettings):
    """What a process needs to know about its surroundings. S3 credentials come through boto3's usual chain."""

    model_config = SettingsConfigDict(env_prefix="PROMPTSTORE_", frozen=True, extra="ignore")

    store: str = Field(
        default="", description="store URL: s3://bucket/prefix, file:///folder, a path, or memory://name"
    )
    cache_dir: Path = Field(
        default_factory=_user_cache, description="models, data, pulled prompts, compiled programs; safe to delete"
    )
    cache_bytes: int = Field(default=1 << 30, ge=0, description="bound of the cache of pulled prompts")
    state_dir: Path = Field(
        default_factory=_user_data, description="last seen commits, cursors, keys; not safe to lose"
    )
    checkpoints: str = Field(
        default="",
        description="object store URL for the checkpoints of fits, which then outlive the machine; "
        "the job's folder in state_dir if empty",
    )
    actor: str = Field(default="", description="who the log says made a change; the login name if empty")
    model: str = Field(
        default="asset:smollm2-135m", description="base model: hf:<repo>[@rev], a folder, a .gguf, asset:…"
    )
    text_prompt_baseline: bool = Field(
        default=True, description="also judge a written prompt before a fit: its inputs are several times as long"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, …, balanced")
    gpus: str = Field(
        default="auto",
        description="GPUs that runs may hold, one run each: auto (what the driver lists), none, or names such as 0,1",
    )
    gpu_wait_s: float = Field(default=86_400.0, ge=0, description="how long a run waits for a GPU that others hold")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"
    recompute_activations: bool = Field(
        default=False, description="fits keep less for the backward pass and take a third longer: for long inputs"
    )
    compile_layers: bool | None = Field(
        default=None, description="fits run compiled layers, half a minute to begin; unset: long fits on a GPU do"
    )
    s3_endpoint: str | None = Field(default=None, description="for S3-compatible servers; AWS if unset")
    s3_region: str | None = None
    s3_addressing: Literal["auto", "path", "virtual"] = "auto"
    s3_encryption: str | None = Field(default=None, description="AES256, or aws:kms[:key id]")
    s3_timeout_s: float = Field(default=10.0, gt=0)
    mlflow_uri: str = Field(
        default="",
        validation_alias=AliasChoices("mlflow_uri", "PROMPTSTORE_MLFLOW_URI", "MLFLOW_TRACKING_URI"),
        description="MLflow tracking server or sqlite:/// URL; tracking is off if empty",
    )
    prefect_api_url: str = Field(
        default="",
        validation_alias=AliasChoices("prefect_api_url", "PREFECT_API_URL"),
        description="Prefect server that flows report to; Prefect starts its own if empty",
    )
    ray_address: str = Field(
        default="local",
        validation_alias=AliasChoices("ray_address", "PROMPTSTORE_RAY_ADDRESS", "RAY_ADDRESS"),
        description="Ray cluster that a fan-out uses: local (one of its own), auto, host:port or ray://host:port",
    )
    catalog: str = Field(default="", description="SQLAlchemy URL of the catalogue; SQLite in state_dir if empty")
    signing_key: Path | None = Field(default=None, description="private Ed25519 key file; commits are signed if set")
    trusted_keys: Path | None = Field(default=None, description="folder of public keys; only commits they signed count")
    otlp_endpoint: str = Field(
        default="",
        validation_alias=AliasChoices("otlp_endpoint", "PROMPTSTORE_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="base URL of an OpenTelemetry collector that a server's traces go to, by OTLP over HTTP",
    )
    server_url: str = Field(default="http://127.0.0.1:8080", description="where `promptstore ask` finds the server")
    confirm_at: str = Field(
        default="", description="servers, URLs separated by commas: a promotion that one of them refuses is taken back"
    )
    confirm_timeout_s: float = Field(default=30.0, gt=0, description="how long those servers have to follow")
    api_key: SecretStr | None = Field(
        default=None,
        description="what commands and flows show to servers; a server without --api-keys asks its callers for it",
    )
    vllm_api_key: SecretStr | None = Field(default=None, description="what `serve --engine vllm` shows to vLLM")
    webhook_secret: SecretStr | None = Field(
        default=None, description="whsec_…, signs what `promptstore outbox run` posts; several while one is replaced"
    )

    @property
    def store_url(self) -> str:
        """The store's URL: the setting, or a folder of this user."""
        return self.store or (self.state_dir / "store").resolve().as_uri()

    @property
    def confirm_servers(self) -> list[str]:
        return [url.strip() for url in self.confirm_at.split(",") if url.strip()]

    def shared(self) -> dict[str, Any]:
        """What a process on another machine is told, to work on the same things: the store, and all that was set here.

        Paths are absolute. Secrets are left out: each machine has its own credentials.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set - {"api_key"}}
        store = self.store_url if "://" in self.store_url else str(Path(self.store_url).expanduser().resolve())
        model = str(Path(self.model).resolve()) if Path(self.model).exists() else self.model
        paths = {name: value.resolve() for name, value in given.items() if isinstance(value, Path)}
        return {**given, **paths, "store": store, "model": model}

    @property
    def catalog_url(self) -> str:
        return self.catalog or f"sqlite:///{(self.state_dir / 'catalog.db').resolve()}"


def load_settings(**overrides: object) -> Settings:
    """The settings of this process; `overrides` that are not `None` win over the environment.

    Raises:
        InvalidInputError: a variable holds something that its setting cannot.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "PROMPTSTORE_" + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidInputError(f"setting {name} is {first['input']!r}: {first['msg']}") from error
