"""What the serving benchmarks conclude: how late a replica was, whether it answered right, and the peer they take."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
import torch

from infra.bench.serving_engine import drain_by_turns, queue_all, typical_groups
from infra.bench.serving_load import Asked
from infra.bench.serving_peft import PeftServer
from infra.bench.serving_promotions import TEXTS, Place, mislabelled, own_answers, tiny_place
from infra.bench.serving_staleness import Look, replaced_for, seen_after
from infra.bench.serving_traffic import CheapPreparation, random_prompts
from infra.bench.serving_writer import Orders, Promoted, promote_all
from promptstore.objects.local import LocalObjectStore
from promptstore.runtime.cached import PackedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import EngineRig
from promptstore.testing.served import SENTIMENT, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

PROMOTED = [Promoted(10.0, 10.1, 2, 5), Promoted(11.0, 11.1, 3, 6), Promoted(12.0, 12.1, 2, 7)]


def answer(version: str, sent_s: float, done_s: float) -> Asked:
    return Asked(sent_s, sent_s, done_s, 200, version, {}, 0)


def opened(folder: Path) -> PromptStore:
    objects = LocalObjectStore(folder)
    return PromptStore(Ledger.open(objects, actor="test"), objects)


def test_a_promotion_is_seen_when_the_replica_serves_it_or_a_later_one() -> None:
    looks = [Look(10.05, 4), Look(10.2, 5), Look(12.0, 6), Look(12.6, 7)]
    assert seen_after(PROMOTED, looks) == pytest.approx([0.1, 0.9, 0.5])
    assert seen_after(PROMOTED, [looks[0], looks[3]]) == pytest.approx([2.5, 1.5, 0.5])


def test_a_replica_that_stops_or_goes_back_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="stopped at commit 6 of 7"):
        seen_after(PROMOTED, [Look(20.0, 6)])
    with pytest.raises(RuntimeError, match="went back"):
        seen_after(PROMOTED, [Look(20.0, 7), Look(21.0, 6)])


def test_an_answer_is_as_old_as_what_replaced_its_version() -> None:
    in_place = [answer("task:1", 9.0, 9.1), answer("task:2", 10.5, 10.6), answer("task:2", 30.0, 30.1)]
    assert replaced_for(in_place, PROMOTED) == [0.0, 0.0, 0.0]
    late = [answer("task:1", 10.4, 10.5), answer("task:2", 11.4, 11.5), answer("task:3", 13.0, 13.1)]
    assert replaced_for(late, PROMOTED) == pytest.approx([0.3, 0.3, 0.9])


def test_a_writer_promotes_what_there_is_in_turn(tmp_path: Path) -> None:
    store, model = new_store(LocalObjectStore(tmp_path)), tiny_llama()
    for seed in range(3):
        publish_random(store, model, SENTIMENT, seed=seed, alias=None if seed else "production")
    done = promote_all(opened(tmp_path), Orders(str(tmp_path), "sentiment", 5, per_s=1000.0))
    assert [each.number for each in done] == [2, 3, 1, 2, 3]
    last = done[-1].commit
    assert [each.commit for each in done] == list(range(last - 4, last + 1))
    assert store.refresh().number == last


def test_a_writer_publishes_each_version_some_promotions_ahead(tmp_path: Path) -> None:
    publish_random(new_store(LocalObjectStore(tmp_path)), tiny_llama(), SENTIMENT, seed=0)
    store = opened(tmp_path)
    done = promote_all(store, Orders(str(tmp_path), "sentiment", 3, per_s=1000.0, ahead=2))
    assert [each.number for each in done] == [2, 3, 4]
    versions = store.state.tasks["sentiment"].versions
    assert len(versions) == 6
    assert len({each.digest for each in versions}) == 6


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tiny_place(3) as made:
        yield made


def test_an_answer_of_another_version_than_it_names_is_found(place: Place) -> None:
    store = opened(place.store)
    by_version = {number: own_answers(place.model, store, f"sentiment:{number}", TEXTS) for number in (1, 2)}
    right = [
        Asked(0.0, 0.0, 1.0, 200, f"sentiment:{number}", answers[body], body)
        for number, answers in by_version.items()
        for body in range(len(TEXTS))
    ]
    assert mislabelled(place, right, TEXTS) == 0
    swapped = Asked(0.0, 0.0, 1.0, 200, "sentiment:1", by_version[2][0], 0)
    nameless = Asked(0.0, 0.0, 1.0, 200, "", by_version[1][0], 0)
    refused = Asked(0.0, 0.0, 1.0, 429, "", {}, 0)
    assert mislabelled(place, [*right, swapped, nameless, refused], TEXTS) == 2


def test_the_peer_computes_one_position_and_gives_the_engines_logits() -> None:
    model, labels, inputs = tiny_llama(), [5, 9], [[3, 5, 7, 11], [13, 2, 8, 4, 6]]
    prompts = random_prompts(model, 3, 4)
    peft = PeftServer(tiny_llama(), prompts, labels)
    decoding, _ = choose_decoding(model)
    rig = EngineRig(model, decoding, {f"prompt-{at}": prompt for at, prompt in enumerate(prompts)})
    for number in (2, 0):
        for ids in inputs:
            ours = rig.answer(rig.score(f"prompt-{number}", ids, labels)).logits
            assert peft.answer(number, [ids])[0] == pytest.approx(ours, abs=1e-4)
    assert len(peft.answer(1, inputs)) == 2


def test_prompts_made_ready_cheaply_are_as_large_and_share_no_memory() -> None:
    model = tiny_llama()
    decoding, _ = choose_decoding(model)
    assert isinstance(decoding, PackedDecoding)
    cheap = CheapPreparation(decoding)
    prompts = random_prompts(model, 3, 4)
    ready = [cheap.prepare(torch.tensor(prompt.embeddings), (3, 5)) for prompt in prompts]
    assert {each.size_bytes for each in ready} == {
        decoding.prepare(torch.tensor(prompts[1].embeddings), (3, 5)).size_bytes
    }
    assert len({each.tensors["keys"].data_ptr() for each in ready}) == 3
    assert not torch.equal(ready[1].tensors["keys"], ready[2].tensors["keys"])


def test_the_peers_share_of_the_traffic_is_of_average_length() -> None:
    requests = [(number % 10, [1] * (5 + number * 7 % 40)) for number in range(80)]
    groups = typical_groups(requests, 4)
    assert [len({number for number, _ in group}) for group in groups] == [1, 1, 1, 1]
    taken = fmean(len(ids) for group in groups for _, ids in group)
    assert taken == pytest.approx(fmean(len(ids) for _, ids in requests), rel=0.02)


def test_queues_that_take_turns_are_all_answered() -> None:
    model = tiny_llama()
    decoding, _ = choose_decoding(model)
    names = {f"prompt-{at}": prompt for at, prompt in enumerate(random_prompts(model, 2, 4))}
    rig = EngineRig(model, decoding, names)
    queues = [queue_all(rig, [(at % 2, [3, 5, 7])] * rows, [5, 9]) for at, rows in enumerate((100, 3))]
    assert len(drain_by_turns(rig, *queues)) == 2
    assert all(answer.logits is not None for _, answers in queues for answer in answers)
