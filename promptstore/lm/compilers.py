"""What compiling needs of the machine."""

import importlib.util
import shutil


def cpp_compiler() -> str | None:
    """The path of this machine's C++ compiler, `None` without one."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def missing_compiler(device_type: str) -> str | None:
    """What this machine would need to compile for such a device, `None` if nothing."""
    if device_type == "cpu":
        return None if cpp_compiler() else "a C++ compiler on a CPU (g++, say); install one"
    if importlib.util.find_spec("triton") is None:
        return "triton on a GPU; pip install triton"
    return (
        None if any(map(shutil.which, ("cc", "gcc", "clang"))) else "a C compiler (gcc, say), for triton; install one"
    )
