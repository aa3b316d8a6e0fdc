"""bfloat16 products with weights that oneDNN has put into its own order beforehand.

torch keeps weights as rows, and oneDNN copies them into blocks before every product. Beside the few rows of a step of
text that copy takes a good part of the time. torch's compiler calls the same two operations; there are no public ones.
"""

import torch
from torch import Tensor

# Rows of a product that the order is chosen for, those of a full batch of texts; any number may come.
ROWS = 32


def has_bf16() -> bool:
    """Whether this processor computes bfloat16 through oneDNN."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


@torch.no_grad()
def in_order(weight: Tensor) -> Tensor:
    """A copy of bfloat16 weights [out, in]: opaque, with shape and dtype, and `to_dense` to have them back."""
    ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)  # noqa: SLF001
    return ordered


def product(values: Tensor, ordered: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b of the last dimension, [..., in] to [..., out]; without gradient. ordered: W, of `in_order`."""
    found: Tensor
    if torch.compiler.is_compiling():  # torch's compiler takes weights in this order as constants alone
        found = torch.ops.promptstore.product(values, ordered, bias)
    else:
        found = _product(values, ordered, bias)
    return found


def _product(values: Tensor, ordered: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(values, ordered, bias, "none", [], "")  # noqa: SLF001
    return found


def _shape(values: Tensor, ordered: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return values.new_empty((*values.shape[:-1], ordered.shape[0]))


# Not `torch.library.custom_op`, whose checks at each call cost 14 us beside products of 100.
torch.library.define("promptstore::product", "(Tensor values, Tensor ordered, Tensor? bias) -> Tensor")
torch.library.impl("promptstore::product", "CompositeExplicitAutograd", _product)
torch.library.register_fake("promptstore::product", _shape)
