"""What compiling needs of the machine, and where what was compiled is kept."""

import importlib.util
import os
import shutil
from pathlib import Path


def cpp_compilers() -> list[str]:
    """The paths of this machine's C++ compilers."""
    return [found for name in ("c++", "g++", "clang++") if (found := shutil.which(name)) is not None]


def own_place(kept: Path) -> None:
    """Sees to it that nobody else can have written a program at `kept`, nor will: it is run. Makes its folder.

    Raises:
        PermissionError: folder or program belong to somebody else. OSError: the folder cannot be made.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        return
    for path in (kept.parent, kept):
        if path.exists() and path.stat().st_uid != os.geteuid():
            raise PermissionError(
                f"{path} belongs to another user, and it would be run; remove it, or name another cache folder"
            )
    kept.parent.chmod(0o700)


def missing_compiler(device_type: str) -> str | None:
    """What this machine would need to compile for such a device, `None` if nothing."""
    if device_type == "cpu":
        return None if cpp_compilers() else "a C++ compiler on a CPU (g++, say); install one"
    if importlib.util.find_spec("triton") is None:
        return "triton on a GPU; pip install triton"
    return (
        None if any(map(shutil.which, ("cc", "gcc", "clang"))) else "a C compiler (gcc, say), for triton; install one"
    )
