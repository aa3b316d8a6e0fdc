"""Rows end to end, without padding, behind keys and values that are computed once for each prompt.

In a causal model the keys and values of a prompt do not depend on what follows it. So a step computes the P virtual
tokens once and not once for every row, and the gradients of all rows gather at these keys and values before one
backward pass takes them to the prompt. The numbers are those of a padded batch, up to rounding.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.transfer import to_device
from promptstore.tuning.after import AfterPass, BothPasses, KeptInputs
from promptstore.tuning.examples import Example
from promptstore.tuning.fused import FusedPasses, may_fuse
from promptstore.tuning.grouped import GroupedPasses
from promptstore.tuning.packed_attention import Packing
from promptstore.tuning.packed_rows import Layers, answer_places, packing_of, run_rows
from promptstore.tuning.padded import PaddedPasses
from promptstore.tuning.passes import Group, Item, OpenPass, Passes

log = logging.getLogger(__name__)

# Relative distance of packed from padded states that rounding explains; measured: 1e-6 in float32, 2e-2 in bfloat16.
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.1
_FOUND_OUT: WeakKeyDictionary[Any, dict[tuple[torch.device, torch.dtype], bool]] = WeakKeyDictionary()
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class PackedPasses:
    """For decoder-only models that use transformers' attention interface; `choose_passes` finds out which do.

    While a pass computes, the network's attention is switched to ours: nobody else may run it at that moment.
    """

    def __init__(self, model: FrozenModel, one_sequence: FusedPasses | GroupedPasses | None = None) -> None:
        """one_sequence: the way of steps that take gradients; what takes none has rows enough to be packed."""
        self._model = model
        self._one_sequence = one_sequence
        self._kept = KeptInputs(model)

    @property
    def is_compiled(self) -> bool:
        return self._one_sequence is not None and self._one_sequence.is_compiled

    def open(self, groups: Sequence[Group]) -> OpenPass:
        if not any(group.is_after for group in groups):
            return self._open(groups)
        # Each way sees a bare model in place of the other's prompts, and none of its rows.
        before = [Group(None) if group.is_after else group for group in groups]
        return BothPasses(groups, self._open(before), AfterPass(self._model, groups, self._kept))

    def _open(self, groups: Sequence[Group]) -> OpenPass:
        packed = _PackedPass(self._model, groups)
        if self._one_sequence is None or not torch.is_grad_enabled():
            return packed
        return self._one_sequence.open(groups, packed)


def choose_passes(model: FrozenModel, *, is_fused: bool = False) -> Passes:
    """The packed way if the architecture takes it, shown by equal results on a few rows; else the padded one.

    is_fused: gradients go through compiled layers with one kernel of attention, if that gives equal results too.
    Without it, on a GPU, small steps go through one sequence for each prompt, on the same condition.
    """
    if not _takes_packed(model):
        return PaddedPasses(model)
    if is_fused:
        if _agree(model, fused := PackedPasses(model, FusedPasses(model))):
            return fused
        log.warning("compiled layers are not used: they fail on this model, or give other numbers than plain ones")
    if may_fuse(model) and _agree(model, grouped := PackedPasses(model, GroupedPasses(model))):
        return grouped
    return PackedPasses(model)


def _takes_packed(model: FrozenModel) -> bool:
    """Found out once for each network, device and dtype."""
    network = model.network
    is_known = set(getattr(network.config.get_text_config(), "layer_types", None) or ()) <= KNOWN_LAYERS
    may_pack = model.takes_positions and is_known and getattr(network, "_supports_attention_backend", False)
    if model.is_encoder_decoder or not may_pack:
        return False
    found = _FOUND_OUT.setdefault(network, {})
    if (key := (model.device, model.dtype)) not in found:
        with torch.no_grad():
            found[key] = _agree(model, PackedPasses(model))
    return found[key]


class _PackedPass:
    def __init__(self, model: FrozenModel, groups: Sequence[Group]) -> None:
        self._model = model
        self._groups = groups
        self._is_begun = False
        self._shared: list[tuple[Tensor, Tensor]] = []
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def cost(self, item: Item) -> int:
        return len(item.example.tokens) - len(self._groups[item.group].prefix_ids)

    def rank(self, item: Item) -> int:
        return self.cost(item)

    def states(self, items: Sequence[Item], *, is_whole: bool = False) -> Tensor:
        rows = [item.example.tokens[len(self._groups[item.group].prefix_ids) :] for item in items]
        embedded = self._model.embed(to_device([[index for row in rows for index in row]], self._model.device))
        lengths, groups = [len(row) for row in rows], [item.group for item in items]
        if is_whole and not self._is_begun and self._has_prefixes:
            ahead = self._prefixes()
            packing = self._packing(lengths, groups, ahead.kept_keys, ahead.kept_values, ahead)
            embedded = torch.cat([self._embedded_prefixes(), embedded], dim=1)
        else:
            self._run_prefixes()
            packing = self._packing(lengths, groups, self._keys, self._values)
        return run_rows(self._model, embedded, packing, answer_places(lengths, items))

    def close(self) -> None:
        pairs = [(computed, leaf.grad) for computed, leaf in self._shared if leaf.grad is not None]
        if pairs:
            gradients = [gradient.to(computed.dtype) for computed, gradient in pairs if gradient is not None]
            torch.autograd.backward([computed for computed, _ in pairs], gradients)

    @property
    def _has_prefixes(self) -> bool:
        return any(group.length for group in self._groups)

    def _run_prefixes(self) -> None:
        """Before the first part of several: what all of them share is computed once."""
        if self._is_begun or not self._has_prefixes:
            return
        self._is_begun = True
        packing = self._prefixes()
        run_rows(self._model, self._embedded_prefixes(), packing)
        self._keys = {layer: self._leaf(keys) for layer, keys in packing.kept_keys.items()}
        self._values = {layer: self._leaf(values) for layer, values in packing.kept_values.items()}

    def _prefixes(self) -> Packing:
        lengths = [group.length for group in self._groups]
        return packing_of(self._model, lengths, [0] * len(lengths), None, {}, {})

    def _embedded_prefixes(self) -> Tensor:
        """[1, all, H]."""
        return torch.cat([part for group in self._groups for part in self._parts(group)])[None]

    def _parts(self, group: Group) -> Iterator[Tensor]:
        if group.prompt is not None:
            yield group.prompt.to(self._model.dtype)
        if group.prefix_ids:
            yield self._model.embed(torch.tensor([group.prefix_ids], device=self._model.device))[0]

    def _leaf(self, computed: Tensor) -> Tensor:
        """Where the rows' gradients gather, in float32: sums over many parts would lose digits in bfloat16."""
        if not computed.requires_grad:
            return computed
        leaf = computed.detach().float().requires_grad_()
        self._shared.append((computed, leaf))
        return leaf

    def _packing(
        self, lengths: Sequence[int], groups: Sequence[int], keys: Layers, values: Layers, ahead: Packing | None = None
    ) -> Packing:
        starts = [self._groups[group].length for group in groups]
        return packing_of(self._model, lengths, starts, groups, keys, values, ahead)


def _agree(model: FrozenModel, packed: Passes) -> bool:
    """Does this way give the padded one's states? Prompts before and after, the bare model, rows of several lengths."""
    ids = [3 + at % max(1, model.vocabulary_size - 4) for at in range(40)]
    prompts = [model.embed(torch.tensor([part], device=model.device))[0].float() for part in (ids[:3], ids[5:12])]
    if torch.is_grad_enabled():
        prompts = [prompt.requires_grad_() for prompt in prompts]
    groups = [Group(prompts[0]), Group(prompts[1], tuple(ids[20:22])), Group(None), Group(prompts[1], is_after=True)]
    rows = [(0, ids[10:14]), (1, ids[20:28]), (3, ids[2:9]), (2, ids[7:22]), (1, ids[20:23])]
    items = [Item(group, Example(tuple(row), (ids[0], ids[1]))) for group, row in rows]
    with torch.no_grad():
        expected = PaddedPasses(model).open(groups).states(items).float()
    try:
        found = packed.open(groups).states(items, is_whole=torch.is_grad_enabled()).detach().float()
    except (TypeError, KeyError, AttributeError, ValueError, RuntimeError):
        return False  # an architecture that calls attention in a way of its own
    distance = float((found - expected).norm() / expected.norm())
    return distance < (TOLERANCE if model.dtype in (torch.float32, torch.float64) else LOW_PRECISION_TOLERANCE)
