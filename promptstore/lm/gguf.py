"""A GGUF file becomes a plain model folder."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptstore.errors import CorruptError
from promptstore.lm.cache import folder_in_making, put_in_place
from promptstore.lm.progress import quiet_unless_on_a_terminal

# Half the bytes of float32 at the same quality: SmolLM2-135M's Q4_1 file, dequantised, has perplexity 21.004 on 40
# BoolQ passages in float32, 21.005 rounded to float16 and 21.003 rounded to bfloat16.
STORED_DTYPE = torch.bfloat16


def convert(gguf: Path, folder: Path) -> None:
    """Writes the dequantised model and its tokenizer to `folder`, as safetensors. Takes a quarter of a minute or more.

    Raises:
        CorruptError: not a GGUF file, or of an architecture that transformers does not read from one.
        StoreUnavailableError: no room in the cache folder.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        with quiet_unless_on_a_terminal():
            network = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise CorruptError(f"{gguf} cannot be read as a GGUF model: {error}") from error
    # transformers refuses to save a model that remembers its quantised origin; these weights no longer have one.
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    with folder_in_making(folder) as made:
        whole = made / "model"
        with quiet_unless_on_a_terminal():
            network.to(STORED_DTYPE).save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        put_in_place(whole, folder)
