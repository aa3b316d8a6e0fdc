"""Prompts by digest: ready on the device, spilled to host memory and disk by least use, loaded once."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, Literal, Protocol, TypeVar

import torch

from promptstore.core.prompt import SoftPrompt
from promptstore.lm.described_model import DescribedModel
from promptstore.runtime.row import Preparation, PreparedPrompt
from promptstore.runtime.spill import DiskSpill

Tier = Literal["device", "host", "disk", "source"]


class PromptSource(Protocol):
    """A prompt as pulled. prefix_ids: tokens that every input of its task starts with; may be none.

    is_after: the prompt stands after the input.
    """

    @property
    def prompt(self) -> SoftPrompt: ...
    @property
    def prefix_ids(self) -> tuple[int, ...]: ...
    @property
    def is_after(self) -> bool: ...


Source = TypeVar("Source", bound=PromptSource)


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes of prepared prompts on the device, and of sources and prepared prompts in host memory.

    What a batch uses at the moment comes on top. Where the CPU is the device, both are the same memory.
    """

    device_bytes: int = 2 << 30
    host_bytes: int = 2 << 30


@dataclass(slots=True, eq=False)
class _Entry(Generic[Source]):
    source: Future[Source] = field(default_factory=Future)
    device: PreparedPrompt | None = None
    host: PreparedPrompt | None = None
    source_bytes: int = 0
    holds: int = 0
    pins: int = 0

    @property
    def is_free(self) -> bool:
        return self.holds == 0 and self.pins == 0


class PromptBank(Generic[Source]):
    """Every prompt a server may need, by the digest of its manifest: a name may move, a digest may not.

    Every method is for any thread. Prompts are brought to the device one at a time, by `decoding`, whose network nobody
    else may run meanwhile; those that are there are found without waiting for that. A held prompt's source stays in
    memory, so answering under it never needs the store. What a request costs here does not grow with the number of
    prompts.
    """

    def __init__(
        self,
        model: DescribedModel,
        decoding: Preparation,
        *,
        budgets: Budgets = Budgets(),
        spill: DiskSpill | None = None,
    ) -> None:
        self._model = model
        self._decoding = decoding
        self._budgets = budgets
        self._spill = spill
        self._lock = Lock()
        self._moving = Lock()
        self._entries: OrderedDict[str, _Entry[Source]] = OrderedDict()
        # Those that nobody holds, least recently released first.
        self._free: OrderedDict[str, None] = OrderedDict()
        self._device_bytes = 0
        self._host_bytes = 0
        self.counts: Counter[str] = Counter()

    def hold(self, digest: str, load: Callable[[], Source], *, pin: bool = False) -> Source:
        """What `load` gave, now or before; it stays in memory until `release`. Blocks for `load` where it must run.

        However many threads ask, `load` runs once at a time per digest. pin: the hold of an alias, which also makes
        the prompt the last to leave the device.

        Raises:
            whatever `load` raises; then nothing is held.
        """
        with self._lock:
            entry = self._entries.get(digest)
            is_first = entry is None
            if entry is None:
                entry = self._entries[digest] = _Entry()
            self._free.pop(digest, None)
            entry.pins += pin
            entry.holds += not pin
        if not is_first:
            return entry.source.result()
        try:
            source = load()
        except BaseException as error:
            with self._lock:
                del self._entries[digest]
            entry.source.set_exception(error)
            raise
        with self._lock:
            entry.source_bytes = source.prompt.embeddings.nbytes
            self._host_bytes += entry.source_bytes
        entry.source.set_result(source)
        return source

    def hold_loaded(self, digest: str) -> Source | None:
        """As `hold`, where nothing must be waited for; `None`, and nothing is held, where something must."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or not entry.source.done():
                return None
            self._free.pop(digest, None)
            entry.holds += 1
        return entry.source.result()

    def release(self, digest: str, *, pin: bool = False) -> None:
        """Ends one `hold`."""
        with self._lock:
            entry = self._entries[digest]
            entry.pins -= pin
            entry.holds -= not pin
            if entry.is_free:
                self._free[digest] = None
            self._trim_sources()

    def prepared(self, digest: str) -> PreparedPrompt:
        """The held prompt on the device, from the nearest place that has it, else computed by one forward pass."""
        return self.find(digest)[0]

    def find(self, digest: str) -> tuple[PreparedPrompt, str]:
        """As `prepared`, and where it was: `device`, `host`, `disk` or `computed`."""
        if (ready := self._on_device(digest)) is not None:
            return ready, "device"
        with self._moving:
            if (ready := self._on_device(digest)) is not None:
                return ready, "device"  # another thread brought it meanwhile
            entry = self._entries[digest]
            found, tier = self._fetch(digest, entry)
            with self._lock:
                self.counts[tier] += 1
            self._place_if_known(digest, entry, device=found)
            self._make_room(digest)
        return found, tier

    def tier(self, digest: str) -> Tier | None:
        """Where the prompt is nearest; `source`: pulled, not prepared yet. For people and metrics."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None and entry.device is not None:
                return "device"
            if entry is not None and entry.host is not None:
                return "host"
        if self._spill is not None and digest in self._spill:
            return "disk"
        return None if entry is None else "source"

    def is_pinned(self, digest: str) -> bool:
        """Whether it is kept for good, as what an alias means."""
        with self._lock:
            entry = self._entries.get(digest)
            return entry is not None and entry.pins > 0

    @property
    def size_bytes(self) -> dict[Tier, int]:
        """Bytes by place."""
        with self._lock:
            device_bytes, host_bytes = self._device_bytes, self._host_bytes
        disk_bytes = 0 if self._spill is None else self._spill.size_bytes
        return {"device": device_bytes, "host": host_bytes, "disk": disk_bytes}

    def _on_device(self, digest: str) -> PreparedPrompt | None:
        with self._lock:
            entry = self._entries[digest]
            self._entries.move_to_end(digest)
            self.counts["device"] += entry.device is not None
            return entry.device

    def _fetch(self, digest: str, entry: _Entry[Source]) -> tuple[PreparedPrompt, str]:
        if entry.host is not None:
            return entry.host.to(self._model.device), "host"
        if self._spill is not None and (spilled := self._spill.get(digest)) is not None:
            return spilled, "disk"
        source = entry.source.result()
        members = [
            self._decoding.prepare(
                torch.tensor(each.embeddings, device=self._model.device), source.prefix_ids, is_after=source.is_after
            )
            for each in source.prompt.members
        ]
        ensemble = source.prompt.ensemble
        return members[0] if ensemble is None else PreparedPrompt.together(members, ensemble), "computed"

    def _make_room(self, newest: str) -> None:
        """Moves what is over budget from the device to the host and from there to disk, `newest` excepted."""
        with self._lock:
            if self._device_bytes <= self._budgets.device_bytes and self._host_bytes <= self._budgets.host_bytes:
                return
            entries = [(digest, entry) for digest, entry in self._entries.items() if digest != newest]
            entries.sort(key=lambda pair: pair[1].pins > 0)
        for digest, entry in entries:
            if self._device_bytes <= self._budgets.device_bytes:
                break
            if (leaving := entry.device) is not None:
                self._place_if_known(digest, entry, host=leaving.to(torch.device("cpu")))
        for digest, entry in entries:
            if self._host_bytes <= self._budgets.host_bytes:
                break
            if (leaving := entry.host) is not None:
                if self._spill is not None:
                    self._spill.put(digest, leaving)
                self._place_if_known(digest, entry)

    def _place_if_known(
        self,
        digest: str,
        entry: _Entry[Source],
        *,
        device: PreparedPrompt | None = None,
        host: PreparedPrompt | None = None,
    ) -> None:
        """On the device, into host memory or nowhere; unless the entry has been forgotten meanwhile."""
        with self._lock:
            if self._entries.get(digest) is entry:
                self._place(entry, device=device, host=host)

    def _place(self, entry: _Entry[Source], *, device: PreparedPrompt | None, host: PreparedPrompt | None) -> None:
        self._device_bytes += _bytes(device) - _bytes(entry.device)
        self._host_bytes += _bytes(host) - _bytes(entry.host)
        entry.device, entry.host = device, host

    def _trim_sources(self) -> None:
        """Forgets what nobody holds, longest released first, until host memory is within its budget."""
        while self._free and self._host_bytes > self._budgets.host_bytes:
            digest, _ = self._free.popitem(last=False)
            entry = self._entries.pop(digest)
            self._place(entry, device=None, host=None)
            self._host_bytes -= entry.source_bytes


def _bytes(prepared: PreparedPrompt | None) -> int:
    return 0 if prepared is None else prepared.size_bytes
