"""What each alias means to requests right now: a value that is replaced whole, between requests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from promptstore.core.ref import PromptRef
from promptstore.core.state import PromptVersion, StoreState
from promptstore.serving.loaded import LoadedPrompt
from promptstore.serving.trials import Trial

AliasKey = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A version ready to answer, and the alias that a request came by (`None`: by number or digest)."""

    version: PromptVersion
    alias: str | None
    prompt: LoadedPrompt


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that an alias points at in the store and that this server does not serve.

    is_foreign: it is for another base model and so was everything before it: another server's business.
    retry_at: when it is tried again, since the reason may pass (the store was not reachable, say) or be mended.
    since: when the alias was first not served as the store says, monotonic seconds, as is `retry_at`.
    """

    version: PromptVersion
    error: BaseException
    is_foreign: bool = False
    retry_at: float = math.inf
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Awaited:
    """A version that an alias points at in the store and that is still on its way here. since: as in `Refusal`."""

    version: PromptVersion
    since: float


@dataclass(frozen=True, slots=True)
class AliasTable:
    """The aliases as served. state: the store as last followed, which may be ahead of what is served.

    refused: why an alias in the store is not served at the version it points at there. awaited: it will be, unless that
    is refused.
    trials: versions on trial for an alias, and the targets that answer for them.
    """

    state: StoreState
    targets: Mapping[AliasKey, Target] = field(default_factory=lambda: MappingProxyType({}))
    refused: Mapping[AliasKey, Refusal] = field(default_factory=lambda: MappingProxyType({}))
    awaited: Mapping[AliasKey, Awaited] = field(default_factory=lambda: MappingProxyType({}))
    trials: Mapping[AliasKey, tuple[Trial, Target]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def serves_nothing(self) -> bool:
        """Whether there are aliases for this server in the store and none is served, not even by an earlier version."""
        is_wanted = bool(self.awaited) or any(not refusal.is_foreign for refusal in self.refused.values())
        return is_wanted and not self.targets

    def find(self, ref: PromptRef) -> Target | None:
        """The target of a ref by alias; `None` if it is by number or digest, or not served."""
        return None if ref.alias is None else self.targets.get((ref.task, ref.alias))
