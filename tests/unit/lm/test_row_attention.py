"""The compiled kernel gives what torch's attention gives for each row alone, whatever rows there are."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from promptstore.lm import row_attention
from promptstore.lm.compilers import cpp_compilers, missing_compiler, own_place
from promptstore.lm.row_attention import RowAttention, load_row_attention

needs_compiler = pytest.mark.skipif(missing_compiler("cpu") is not None, reason="needs a C++ compiler")
LAYERS = 3


@dataclass
class Pass:
    """known: keys and values, [L, K, C, D], of each row. query: [1, heads, N, D]; key, value: [1, K, N, D]."""

    known: list[tuple[Tensor, Tensor]]
    edges: list[tuple[int, int]]
    query: Tensor
    key: Tensor
    value: Tensor

    def attend(self, kernel: RowAttention, layer: int, window: int | None = None, scale: float | None = None) -> Tensor:
        over = kernel.over(self.known, self.edges)
        assert over.takes(self.query, self.key, self.value, layer, window)
        return over(self.query, self.key, self.value, layer, scale=scale, window=window)

    def expected(self, layer: int, window: int | None = None, scale: float | None = None) -> Tensor:
        """Row by row, in float64."""
        outputs = []
        for (keys, values), (start, stop) in zip(self.known, self.edges, strict=True):
            all_keys = torch.cat([keys[layer], self.key[0, :, start:stop]], dim=1)[None].double()
            all_values = torch.cat([values[layer], self.value[0, :, start:stop]], dim=1)[None].double()
            length = all_keys.shape[2]
            distance = torch.arange(length - (stop - start), length)[:, None] - torch.arange(length)[None]
            found = torch.nn.functional.scaled_dot_product_attention(
                self.query[:, :, start:stop].double(),
                all_keys,
                all_values,
                attn_mask=(distance >= 0) & (distance < (window or length)),
                scale=scale,
                enable_gqa=True,
            )
            outputs.append(found.transpose(1, 2))
        return torch.cat(outputs, dim=1)


@pytest.fixture(scope="module")
def kernel(compiled_folder: Path) -> RowAttention:
    found = load_row_attention(compiled_folder)
    assert found is not None
    return found


def drawn(
    lengths: Sequence[tuple[int, int]], *, heads: tuple[int, int] = (9, 3), width: int = 64, dtype: torch.dtype
) -> Pass:
    """Rows of so many known and new tokens. heads: of queries and of keys."""
    generator = torch.Generator().manual_seed(len(lengths) + width)

    def of(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def wider(count: int) -> Tensor:
        """A view of a wider buffer, as a prompt's and a cache's are."""
        return of(LAYERS, heads[1], count + 3, width)[:, :, :count]

    ends = torch.tensor([new for _, new in lengths]).cumsum(0).tolist()
    tokens = ends[-1]
    return Pass(
        known=[(wider(count), wider(count)) for count, _ in lengths],
        edges=[(end - new, end) for end, (_, new) in zip(ends, lengths, strict=True)],
        query=of(1, tokens, heads[0], width).transpose(1, 2),
        key=of(1, tokens, heads[1], width).transpose(1, 2),
        value=of(1, heads[1], tokens, width),
    )


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 0.02


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 5, 17])
def test_any_mix_of_rows_is_attended_to_as_each_row_alone(
    kernel: RowAttention, dtype: torch.dtype, window: int | None
) -> None:
    draw = random.Random(7)
    lengths = [(draw.randrange(40), draw.randrange(1, 40)) for _ in range(9)] + [(0, 1), (100, 1), (15, 1), (16, 16)]
    rows = drawn(lengths, dtype=dtype)
    for layer in range(LAYERS):
        found, expected = rows.attend(kernel, layer, window, 0.3), rows.expected(layer, window, 0.3)
        assert (found.double() - expected).abs().max() < tolerance(dtype)


@needs_compiler
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (8, 4), (5, 1), (8, 1), (14, 2)])
@pytest.mark.parametrize("width", [8, 32, 80, 96, 128, 256])
def test_any_heads_are_attended_with(kernel: RowAttention, heads: tuple[int, int], width: int) -> None:
    rows = drawn([(7, 3), (2, 1), (21, 1)], heads=heads, width=width, dtype=torch.float32)
    assert (rows.attend(kernel, 1).double() - rows.expected(1)).abs().max() < 1e-5


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it(kernel: RowAttention, dtype: torch.dtype) -> None:
    rows = drawn([(20, 7), (3, 1), (0, 40), (50, 2)], dtype=dtype)
    together = rows.attend(kernel, 2)
    for known, (start, stop) in zip(rows.known, rows.edges, strict=True):
        new = [part[:, :, start:stop] for part in (rows.query, rows.key, rows.value)]
        assert torch.equal(Pass([known], [(0, stop - start)], *new).attend(kernel, 2), together[:, start:stop])


@needs_compiler
def test_it_computes_on_as_many_threads_as_torch(kernel: RowAttention) -> None:
    rows = drawn([(20, 30)] * 16, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(rows.attend(kernel, 0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_any_size_are_softened_as_torch_does(kernel: RowAttention, dtype: torch.dtype) -> None:
    rows = drawn([(30, 4)], dtype=dtype)
    for scale in (1e-4, 20.0, 1000.0):
        assert (rows.attend(kernel, 0, scale=scale).double() - rows.expected(0, scale=scale)).abs().max() < 0.03


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_stays_in_its_row(kernel: RowAttention, dtype: torch.dtype, bad: float) -> None:
    rows = drawn([(5, 2), (6, 3), (7, 1)], dtype=dtype)
    expected = rows.expected(0)
    rows.key[:, :, 2] = bad
    found = rows.attend(kernel, 0).double()
    assert not found[:, 2].isfinite().all()
    kept = [0, 1, 5]
    assert (found[:, kept] - expected[:, kept]).abs().max() < tolerance(dtype)


@needs_compiler
def test_what_it_does_not_compute_is_left_to_torch(kernel: RowAttention) -> None:
    good = drawn([(4, 2)], dtype=torch.float32)
    half = drawn([(4, 2)], dtype=torch.float16)
    wide = drawn([(4, 2)], width=257, dtype=torch.float32)
    strided = drawn([(4, 2)], dtype=torch.float32)
    strided.query = torch.zeros(1, 9, 64, 2).transpose(2, 3)
    scattered = drawn([(4, 2)], dtype=torch.float32)
    scattered.known = [tuple(part.transpose(2, 3).contiguous().transpose(2, 3) for part in scattered.known[0])]  # type: ignore[list-item]
    uneven = drawn([(4, 2)], dtype=torch.float32)
    uneven.value = uneven.value[..., :32]
    latent, few = (drawn([(4, 2)], dtype=torch.float32) for _ in range(2))
    latent.known = drawn([(4, 2)], width=32, dtype=torch.float32).known
    few.known = drawn([(4, 2)], heads=(1, 1), dtype=torch.float32).known

    def takes(rows: Pass, layer: int = 0, window: int | None = None) -> bool:
        return kernel.over(rows.known, rows.edges).takes(rows.query, rows.key, rows.value, layer, window)

    assert takes(good)
    assert not any(map(takes, (half, wide, strided, scattered, uneven, latent, few)))
    assert not takes(good, layer=LAYERS)
    assert not takes(good, window=0)


@needs_compiler
def test_without_memory_for_a_row_an_error_says_so(compiled_folder: Path, kernel: RowAttention) -> None:
    del kernel  # compiled before
    program = f"""
import resource, torch
from pathlib import Path
from promptstore.lm.row_attention import load_row_attention
torch.set_num_threads(2)
part = torch.ones(1, 2, 500_000, 128, dtype=torch.bfloat16)
new = torch.ones(1, 2, 1, 128, dtype=torch.bfloat16)
over = load_row_attention(Path({str(compiled_folder)!r})).over([(part, part)], [(0, 1)])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))
try:
    over(new, new, new, 0, scale=None, window=None)
except MemoryError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "attention found no memory for the keys and values of a row\n"


@needs_compiler
def test_it_is_compiled_once(compiled_folder: Path, kernel: RowAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    del kernel  # compiled before
    monkeypatch.setenv("PATH", "/nowhere")
    assert load_row_attention(compiled_folder) is not None
    assert len(list(compiled_folder.glob("*.so"))) == 1


@pytest.mark.parametrize("program", ["exit 3", "echo 'no such flag: -fopenmp' >&2; exit 1"])
def test_where_it_does_not_compile_that_is_said_and_nothing_is_left(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text(f"#!/bin/sh\n{program}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    assert load_row_attention(tmp_path / "kept") is None
    assert "left to torch" in caplog.text
    assert ("no such flag" in caplog.text) == ("no such flag" in program)
    assert list((tmp_path / "kept").iterdir()) == []


@needs_compiler
def test_a_compiler_that_fails_does_not_hide_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c++").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "c++").chmod(0o755)
    (tmp_path / "g++").symlink_to(cpp_compilers()[0])
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(row_attention, "_compile", lambda command, _: tried.append(Path(command[0])))
    tried: list[Path] = []
    load_row_attention(tmp_path / "kept")
    assert tried[:2] == [tmp_path / "c++", tmp_path / "g++"]


@needs_compiler
def test_no_program_is_run_from_a_folder_that_others_write(
    compiled_folder: Path, kernel: RowAttention, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    del kernel
    compiled_folder.chmod(0o777)
    assert load_row_attention(compiled_folder) is not None
    assert compiled_folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(os, "geteuid", lambda: compiled_folder.stat().st_uid + 1)
    assert load_row_attention(compiled_folder) is None
    assert "belongs to another user" in caplog.text


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_no_program_of_another_user_is_run(tmp_path: Path) -> None:
    kept = tmp_path / "planted.so"
    kept.write_bytes(b"program")
    own_place(kept)
    os.chown(kept, 12345, -1)
    with pytest.raises(PermissionError, match=r"planted\.so belongs to another user"):
        own_place(kept)


@needs_compiler
def test_a_kept_file_that_is_damaged_is_compiled_again(
    compiled_folder: Path, kernel: RowAttention, tmp_path: Path
) -> None:
    del kernel
    (kept,) = compiled_folder.glob("*.so")
    (tmp_path / kept.name).write_bytes(b"no program")
    assert load_row_attention(tmp_path) is not None


@needs_compiler
def test_its_source_needs_no_wide_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    found = load_row_attention(tmp_path)
    assert found is not None
    rows = drawn([(20, 3), (4, 9)], dtype=torch.bfloat16)
    assert (rows.attend(found, 2).double() - rows.expected(2)).abs().max() < 0.02
    assert row_attention.SOURCE.is_file()
