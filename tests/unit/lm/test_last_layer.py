"""The last layer's feed-forward part runs where somebody reads, and answers stay as they were."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from torch import Tensor, nn

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.last_layer import feed_forward_at
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama

READ = torch.tensor([2, 6])


@torch.inference_mode()
def states(model: FrozenModel) -> Tensor:
    found: Tensor = model.network.base_model(input_ids=torch.arange(3, 10)[None]).last_hidden_state
    return found[0, READ]


@pytest.mark.parametrize("model", [tiny_llama(), tiny_gemma(), tiny_gpt2()], ids=["llama", "gemma", "gpt2"])
def test_states_that_are_read_are_those_of_the_whole_layer(model: FrozenModel) -> None:
    whole = states(model)
    with feed_forward_at(model.network, READ):
        torch.testing.assert_close(states(model), whole)
    torch.testing.assert_close(states(model), whole, rtol=0, atol=0)


def test_only_the_last_layer_computes_less() -> None:
    model = tiny_llama(layers=3)
    widths: list[int] = []

    def note(_: nn.Module, given: tuple[Tensor]) -> None:
        widths.append(given[0].shape[1])

    for layer in model.network.base_model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(note)
    with feed_forward_at(model.network, READ):
        states(model)
    states(model)
    assert widths == [7, 7, 2, 7, 7, 7]


def test_other_threads_get_the_whole_layer_and_leave_nothing_behind() -> None:
    model = tiny_llama()
    whole = states(model)
    with ThreadPoolExecutor(1) as pool:
        with feed_forward_at(model.network, torch.tensor([0])):
            torch.testing.assert_close(pool.submit(states, model).result(), whole, rtol=0, atol=0)
            with feed_forward_at(model.network, READ):
                torch.testing.assert_close(states(model), whole)
            assert (states(model) != whole).any(), "only the first position is read here"
        entered, may_leave = Event(), Event()

        def stay() -> None:
            with feed_forward_at(model.network, torch.tensor([0])):
                entered.set()
                may_leave.wait(30)

        staying = pool.submit(stay)
        assert entered.wait(30)
        with feed_forward_at(model.network, READ):
            may_leave.set()
            staying.result()
            torch.testing.assert_close(states(model), whole)
    assert "forward" not in vars(model.network.base_model.layers[-1].mlp)


def test_an_error_leaves_the_layer_as_it_was() -> None:
    model = tiny_llama()
    whole = states(model)
    with pytest.raises(KeyError), feed_forward_at(model.network, READ):
        raise KeyError
    torch.testing.assert_close(states(model), whole, rtol=0, atol=0)
