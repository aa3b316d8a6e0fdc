"""A network that only answers, on a CPU, compiled: a packed pass in which all that is small runs joined.

Beside its products and its attention a layer is some thirty small operations, and a step of text is as many rows as
texts: what torch does between these operations, and reading and writing what lies between them, takes a quarter of it.
The compiler (`torch.compile`) makes a few loops of them. Products and attention stay what they are elsewhere, called
from the compiled pass as operations that it knows nothing of: so any rows can be attended to, and nothing is compiled
again for other batches, lengths or numbers of threads.
"""

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from promptstore.errors import InvalidInputError
from promptstore.lm.compilers import missing_compiler, own_place
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.packed import attended, enable_packing, options_of

logger = logging.getLogger(__name__)

Pass = Callable[[Any, Tensor, Tensor], Tensor]
ATTENTION = "promptstore_compiled"
# Of the operations that a compiled pass calls: what was kept with another one is compiled anew.
FORMAT = 1
# Of a configuration, what a compiled pass does not depend on.
_SAY_NOTHING = {"_name_or_path", "_attn_implementation", "_attn_implementation_internal"}


def compile_network(model: FrozenModel, *, folder: Path) -> FrozenModel:
    """The same model, whose packed passes are compiled; what `promptstore.runtime.cached.PackedDecoding` then runs.

    Blocks: about a minute for thirty layers; some seconds where the pass was kept in `folder`, which must be as
    trusted as the code: it holds programs. Answers are what they were up to rounding.

    Raises:
        InvalidInputError: the model is not on a CPU, the machine has no C++ compiler, or the network cannot be compiled
            in one piece.
    """
    if model.device.type != "cpu":
        raise InvalidInputError(f"a network is compiled for answers on a CPU, and this one is on {model.device}")
    if lacking := missing_compiler("cpu"):
        raise InvalidInputError(f"to compile a network takes {lacking}, or leave --compile out")
    kept = folder / f"{_key(model)}.pass"
    return replace(model, compiled=_load(kept) or _compile(model, kept))


def _compile(model: FrozenModel, kept: Path) -> Pass:
    name = model.fingerprint.architecture
    logger.info("compiling %s: about a minute, once for this model, dtype and machine", name)
    started = time.monotonic()
    try:
        found = _traced(model)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInputError(f"{name} cannot be compiled; leave --compile out: {reason}") from error
    logger.info("compiled %s in %.0f s", name, time.monotonic() - started)
    try:
        own_place(kept)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".compiling-") as name:
            made = Path(name) / kept.name
            found.save_compiled_function(str(made))
            made.replace(kept)  # whole, for other servers that start meanwhile
    except Exception as error:  # noqa: BLE001 - it is ready, only not for the next start
        logger.warning("the compiled network is not kept in %s, so the next start compiles again: %s", kept, error)
    found.disable_guard_check()
    return found  # type: ignore[no-any-return]


@torch.inference_mode()
def _traced(model: FrozenModel) -> Any:
    """In a network of its own, which alone calls the operation below."""
    if not model.takes_positions or model.is_encoder_decoder:
        raise InvalidInputError("it takes no positions, so its tokens cannot be packed")
    twin = model.twin()
    enable_packing(twin)
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    twin.network.set_attn_implementation(ATTENTION)
    embedded = torch.zeros((1, 7, model.hidden_size), dtype=model.dtype)
    positions = torch.arange(7)[None]
    for tensor in (embedded, positions):
        torch._dynamo.mark_dynamic(tensor, 1)  # noqa: SLF001 - documented
    # No guards: the key says which network this is for, shapes are dynamic, and nothing else is read.
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "cpp.dynamic_threads": True}
    compiled: Any = torch.compile(_packed_pass, fullgraph=True, options=options)
    return compiled.aot_compile(((twin.network.base_model, embedded, positions), {}))


def _packed_pass(network: Any, embedded: Tensor, positions: Tensor) -> Tensor:
    """What is compiled. The mask has four dimensions: it is taken as it is, and attention makes its own."""
    unread_mask = torch.zeros((1, 1, 1, 1), dtype=embedded.dtype)
    outputs = network(
        inputs_embeds=embedded,
        position_ids=positions,
        attention_mask=unread_mask,
        use_cache=False,
        return_dict=True,
    )
    hidden: Tensor = outputs.last_hidden_state
    return hidden


def _load(kept: Path) -> Pass | None:
    """What an earlier start left; `None` if nothing, or if it does not fit this machine or is damaged."""
    if not kept.is_file():
        return None
    started = time.monotonic()
    try:
        own_place(kept)
        with kept.open("rb") as file:
            found: Any = torch.compiler.load_compiled_function(file)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it can be made again
        logger.warning("the compiled network in %s is of no use here, so it is compiled again: %s", kept, error)
        return None
    logger.info("the compiled network was kept in %s; ready after %.0f s", kept, time.monotonic() - started)
    found.disable_guard_check()
    return found  # type: ignore[no-any-return]


def _key(model: FrozenModel) -> str:
    """Says all that a compiled pass depends on, but for what it checks itself when it is loaded."""
    network = model.network.base_model
    weights = chain(network.named_parameters(), network.named_buffers())
    shapes = [f"{name} {tuple(each.shape)} {each.dtype} {each.layout}" for name, each in weights]
    said = [
        f"{FORMAT} {torch.__version__} {transformers.__version__} {torch.backends.cpu.get_cpu_capability()}",
        type(network).__name__,
        str(sorted((name, str(value)) for name, value in network.config.to_dict().items() if name not in _SAY_NOTHING)),
        *sorted(shapes),
    ]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:32]


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    del attention_mask
    scale, window = options_of(module, options)
    return _attend(query, key, value, scale, window), None


@torch.library.custom_op("promptstore::attend", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    rows = attended()
    if rows is None:
        raise RuntimeError("a compiled network runs packed passes alone; use promptstore.lm.packed")
    return rows.attend(query, key, value, scale=scale, window=window).contiguous()


@_attend.register_fake
def _shape(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    del key, scale, window
    return query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
