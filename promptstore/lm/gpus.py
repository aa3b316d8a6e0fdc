"""Which GPUs of this machine runs may hold."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from promptstore.errors import InvalidInputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPU = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^)]+)\)")
_MIG = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True, slots=True)
class ListedGpu:
    """A GPU as its driver lists it. parts: the MIG devices it is divided into, which are what can be held then."""

    index: str
    uuid: str
    parts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.parts or (self.uuid,)


def find_gpus(chosen: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the GPUs that runs may hold, as CUDA_VISIBLE_DEVICES takes them.

    chosen: `auto` (what the driver lists), `none`, or names, such as `0,1`. CUDA_VISIBLE_DEVICES in `environment`, set
    by a scheduler or by an earlier hold of this process, narrows that. Numbers become the GPUs' own names where the
    driver lists them, so that all processes mean the same device by the same name.

    Raises:
        InvalidInputError: `chosen` names nothing that CUDA_VISIBLE_DEVICES leaves visible.
    """
    if chosen == "none":
        return ()
    visible = None if environment.get(VISIBLE) is None else _names(environment[VISIBLE])
    named = None if chosen == "auto" else _names(chosen)
    if visible == [] or named == []:
        return ()
    listed = list_gpus()
    by_index = {gpu.index: gpu.names for gpu in listed}
    everything = [name for gpu in listed for name in gpu.names]
    if named is None and visible is None:
        return tuple(everything)
    allowed = None if visible is None else _own_names(visible, by_index)
    if named is None:
        return tuple(allowed or ())
    wanted = _own_names(named, by_index)
    found = tuple(name for name in wanted if allowed is None or name in allowed)
    if not found:
        raise InvalidInputError(
            f"PROMPTSTORE_GPUS is {chosen}, none of which {VISIBLE}={environment[VISIBLE]} leaves visible; "
            "name GPUs in both by the same numbers or names"
        )
    return found


def list_gpus() -> list[ListedGpu]:
    """What NVIDIA's driver lists; nothing where there is none. Starts no CUDA in this process."""
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_listing(said.stdout)


def parse_listing(text: str) -> list[ListedGpu]:
    """GPUs in what `nvidia-smi -L` prints.

    >>> parse_listing("GPU 0: NVIDIA L4 (UUID: GPU-5a)\\nGPU 1: NVIDIA L4 (UUID: GPU-6b)\\n")[1].names
    ('GPU-6b',)
    """
    found: list[ListedGpu] = []
    for line in text.splitlines():
        if gpu := _GPU.match(line):
            found.append(ListedGpu(gpu[1], gpu[2]))
        elif found and (part := _MIG.match(line)):
            last = found[-1]
            found[-1] = ListedGpu(last.index, last.uuid, (*last.parts, part[1]))
    return found


def _names(text: str) -> list[str]:
    """As CUDA reads it: a name that is none, such as -1, hides itself and all after it."""
    names: list[str] = []
    for name in text.split(","):
        if not re.fullmatch(r"\d+|[A-Za-z][\w./-]*", name.strip()):
            break
        names.append(name.strip())
    return names


def _own_names(names: list[str], by_index: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [own for name in names for own in by_index.get(name, (name,))]
