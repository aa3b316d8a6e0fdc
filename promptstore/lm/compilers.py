"""What compiling needs of the machine."""

import importlib.util
import shutil


def missing_compiler(device_type: str) -> str | None:
    """What this machine would need to compile for such a device, `None` if nothing."""
    if device_type == "cpu":
        has_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
        return None if has_compiler else "a C++ compiler on a CPU (g++, say); install one"
    if importlib.util.find_spec("triton") is None:
        return "triton on a GPU; pip install triton"
    return (
        None if any(map(shutil.which, ("cc", "gcc", "clang"))) else "a C compiler (gcc, say), for triton; install one"
    )
