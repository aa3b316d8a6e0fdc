"""What is recorded and when; that a recording computes what a plain pass does is shown on a GPU, in `tests/gpu`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from promptstore.tuning import recorded
from promptstore.tuning.recorded import RecordedPass


class Recorder:
    """In place of `torch.cuda.make_graphed_callables`: says what was recorded and replayed."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.replays = 0
        self.pools: set[object] = set()
        self.error: RuntimeError | None = None

    def __call__(
        self, compute: Callable[..., Tensor], inputs: tuple[Tensor, ...], *, num_warmup_iters: int, pool: object
    ) -> Callable[..., Tensor]:
        assert num_warmup_iters > 0
        assert [each.requires_grad for each in inputs] == [True, False]
        if self.error is not None:
            raise self.error
        self.widths.append(inputs[0].shape[1])
        self.pools.add(pool)

        def replay(*tensors: Tensor) -> Tensor:
            self.replays += 1
            return compute(*tensors)

        return replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found, handles = Recorder(), iter(range(100))
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(recorded, "_is_recordable", lambda tensor: tensor.requires_grad)
    return found


def run(each: RecordedPass, width: int) -> None:
    values = torch.full((1, width), 3.0, requires_grad=True)
    torch.autograd.backward(each(values, torch.tensor(2.0)).sum())
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0] * width]


def test_a_shape_that_comes_back_is_recorded_once(recorder: Recorder) -> None:
    product = RecordedPass(torch.mul)
    for width in (4, 8, 4, 4, 4, 16):
        run(product, width)
    assert recorder.widths == [4]
    assert recorder.replays == 3
    for width in (8, 16, 8):
        run(product, width)
    assert recorder.widths == [4, 8, 16]
    assert len(recorder.pools) == 1


def test_what_takes_no_gradient_is_not_recorded(recorder: Recorder) -> None:
    product = RecordedPass(torch.mul)
    for _ in range(3):
        assert product(torch.ones(1, 4), torch.tensor(2.0)).tolist() == [[2.0] * 4]
    assert not recorder.widths


def test_a_model_that_cannot_be_recorded_runs_plain_and_says_so_once(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.error = RuntimeError("operation not permitted when stream is capturing")
    product = RecordedPass(torch.mul)
    for _ in range(4):
        run(product, 4)
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "not permitted" in caplog.text
    assert not recorder.replays


def test_recordings_are_few_and_forgotten_together(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST_RECORDINGS", 2)
    product = RecordedPass(torch.mul)
    for width in (1, 1, 2, 2, 3, 3):
        run(product, width)
    assert len(recorder.pools) == 2
    run(product, 1)
    assert recorder.widths == [1, 2, 3, 1]
    product.forget()
    run(product, 3)
    assert recorder.widths == [1, 2, 3, 1, 3]
    assert len(recorder.pools) == 3
