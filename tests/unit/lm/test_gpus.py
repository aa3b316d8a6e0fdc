"""Which GPUs runs may hold, from the setting, CUDA_VISIBLE_DEVICES and what the driver prints."""

import stat
from pathlib import Path

import pytest

from promptstore.errors import InvalidInputError
from promptstore.lm.gpus import find_gpus, parse_listing

TWO = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa11)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb22)\n"
DIVIDED = (
    "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa11)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-c1)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-c2)\n"
    "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb22)\n"
)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `nvidia-smi` that prints a file: a machine with two GPUs."""
    (tmp_path / "listing").write_text(TWO)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path / 'listing'}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "listing"


def test_a_divided_gpu_is_held_by_its_parts(driver: Path) -> None:
    driver.write_text(DIVIDED)
    assert find_gpus("auto", {}) == ("MIG-c1", "MIG-c2", "GPU-bb22")
    assert [gpu.index for gpu in parse_listing(DIVIDED)] == ["0", "1"]


@pytest.mark.parametrize(
    ("chosen", "visible", "found"),
    [
        ("auto", None, ("GPU-aa11", "GPU-bb22")),
        ("auto", "1", ("GPU-bb22",)),
        ("auto", "GPU-aa11", ("GPU-aa11",)),
        ("auto", "", ()),
        ("auto", "-1", ()),
        ("auto", "1,-1,0", ("GPU-bb22",)),
        ("none", None, ()),
        ("1", None, ("GPU-bb22",)),
        ("0, 1", "GPU-bb22", ("GPU-bb22",)),
    ],
)
def test_one_device_has_one_name_whoever_names_it(
    driver: Path, chosen: str, visible: str | None, found: tuple[str, ...]
) -> None:
    assert find_gpus(chosen, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


def test_a_setting_that_names_only_hidden_gpus_is_refused(driver: Path) -> None:
    with pytest.raises(InvalidInputError, match="PROMPTSTORE_GPUS is 0, none of which CUDA_VISIBLE_DEVICES=1 leaves"):
        find_gpus("0", {"CUDA_VISIBLE_DEVICES": "1"})


def test_a_machine_without_a_driver_has_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus("auto", {}) == ()
    assert find_gpus("a,b", {}) == ("a", "b")
