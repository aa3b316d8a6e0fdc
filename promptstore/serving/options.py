"""How a server is to run; `promptstore serve` takes these as its flags."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from promptstore.errors import InvalidInputError
from promptstore.runtime.bank import Budgets
from promptstore.runtime.scheduler import SchedulerLimits
from promptstore.runtime.vllm.answerer import VllmLimits
from promptstore.serving.middleware import BodyLimits
from promptstore.serving.service import ServiceLimits


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """tasks: the only ones served; empty serves all of the store's.

    poll_s: how often the store is asked for news. staleness_bound_s: older than this, the state is reported as stale.
    api_keys: a TOML file, see `promptstore.serving.api_keys`; without it, and without PROMPTSTORE_API_KEY, everybody
    may ask, on loopback only unless `allow_anonymous`. anonymous_per_minute: bound on requests per client address then.
    drain_s: how long a stopping server takes to answer what it has. drain_delay_s: how long before that it still
    takes requests, so that load balancers notice.
    may_abort_rollouts: a rollout that breaks its bounds is aborted in the store; otherwise by this replica alone.
    spill_bytes: of prepared prompts on local disk; 0 keeps none.
    compile_network: on a CPU, see `promptstore.lm.compiled`; the first start takes a minute longer.
    parallel_batches: computed at a time, each on its share of the cores; `None` for up to four on a CPU, one on a GPU.
    engine: `own` answers with a model in this process, `vllm` through the server at `vllm_url`.
    vllm_model: vLLM's id of the model, where its name does not say that it is the gateway's; empty to find out.
    vllm_timeout_s: bound on vLLM's silence, before an answer and between two parts of it.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    tasks: frozenset[str] = frozenset()
    poll_s: float = 1.0
    staleness_bound_s: float = 60.0
    api_keys: Path | None = None
    allow_anonymous: bool = False
    anonymous_per_minute: int | None = None
    drain_s: float = 30.0
    drain_delay_s: float = 0.0
    may_abort_rollouts: bool = True
    spill_bytes: int = 4 << 30
    compile_network: bool = False
    parallel_batches: int | None = None
    engine: Literal["own", "vllm"] = "own"
    vllm_url: str = ""
    vllm_model: str = ""
    vllm_timeout_s: float = 60.0
    budgets: Budgets = field(default_factory=Budgets)
    scheduler: SchedulerLimits = field(default_factory=SchedulerLimits)
    service: ServiceLimits = field(default_factory=ServiceLimits)
    body: BodyLimits = field(default_factory=BodyLimits)
    vllm: VllmLimits = field(default_factory=VllmLimits)

    @property
    def queued(self) -> int:
        """Inputs that may wait for the engine that was asked for."""
        return self.vllm.queued if self.engine == "vllm" else self.scheduler.queued

    def check(self, *, has_keys: bool) -> None:
        """Refuses to let strangers in by accident, and an engine without its address or an address without its engine.

        Raises:
            InvalidInputError: an address that others reach, without keys and without `allow_anonymous`; vLLM without
                an http URL, or its URL for the own engine; to compile what vLLM runs.
        """
        if (self.engine == "vllm") != (urlsplit(self.vllm_url).scheme in {"http", "https"}):
            raise InvalidInputError(
                f"engine {self.engine} with vLLM's URL {self.vllm_url!r}; "
                "for vLLM give --engine vllm --vllm-url http://…, for the own engine neither"
            )
        if self.engine == "vllm" and self.compile_network:
            raise InvalidInputError("--compile is for the own engine; leave it out, vLLM compiles by itself")
        if not (has_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise InvalidInputError(
                f"{self.host} can be reached from other machines and no API keys are set; "
                "give --api-keys FILE, or --allow-anonymous if the network is closed to strangers"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
