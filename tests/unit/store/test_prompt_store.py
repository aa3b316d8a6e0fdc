"""What people do with a store."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptstore.core.manifest import Provenance
from promptstore.core.operation import MoveAlias
from promptstore.core.prompt import SoftPrompt
from promptstore.core.ref import PromptRef
from promptstore.errors import (
    ConflictError,
    CorruptError,
    IncompatibleModelError,
    InvalidInputError,
    NotFoundError,
    PromptStoreError,
    RefusedError,
)
from promptstore.store.cache import PromptCache
from promptstore.store.following import read_commit
from promptstore.store.layout import BlobKey, commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import Fault, ScriptedObjects
from promptstore.testing.store_samples import (
    START,
    aliases_of,
    publish_samples,
    reopened,
    sample_fingerprint,
    sample_prompt,
    sample_store,
    sample_task,
)


class TestPublish:
    def test_a_published_prompt_is_pulled_bit_for_bit_by_another_process(
        self, prompts: PromptStore, objects: ScriptedObjects
    ) -> None:
        provenance = Provenance(mlflow_run="r1", data_digest="a" * 64)
        version = prompts.publish(
            sample_prompt(7), sample_task(), provenance=provenance, metrics={"accuracy": 0.9}, reason="nightly"
        )
        pulled = reopened(objects).pull("sst2:1", for_model=sample_fingerprint())
        assert pulled.version == version
        assert pulled.prompt.embeddings.tobytes() == sample_prompt(7).embeddings.tobytes()
        assert pulled.manifest.task == sample_task()
        assert (pulled.manifest.provenance, pulled.manifest.metrics) == (provenance, {"accuracy": 0.9})

    def test_it_takes_three_calls(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        publish_samples(prompts)
        objects.calls.clear()
        publish_samples(prompts)
        assert [call.verb for call in objects.calls] == ["put", "put", "put_if_absent"]
        assert [call.key.partition("/")[0] for call in objects.calls] == ["payloads", "manifests", "commits"]

    def test_the_first_hundreds_take_four_at_most(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        publish_samples(prompts)
        for _ in range(205):
            objects.calls.clear()
            publish_samples(prompts)
            assert len(objects.calls) <= 4

    def test_the_same_again_is_the_same_version(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        first = prompts.publish(sample_prompt(), sample_task())
        publish_samples(prompts, 2)
        assert reopened(objects).publish(sample_prompt(), sample_task()) == first
        assert prompts.refresh().number == 3

    def test_other_metrics_or_task_or_numbers_are_another_version(self, prompts: PromptStore) -> None:
        digests = {
            prompts.publish(sample_prompt(), sample_task()).digest,
            prompts.publish(sample_prompt(), sample_task(), metrics={"accuracy": 0.5}).digest,
            prompts.publish(sample_prompt(), replace(sample_task(), max_input_tokens=9)).digest,
            prompts.publish(sample_prompt(1), sample_task()).digest,
            prompts.publish(sample_prompt(), sample_task("other")).digest,
        }
        assert len(digests) == 5
        assert [each.number for each in prompts.state.task("sst2").versions] == [1, 2, 3, 4]

    def test_an_expired_version_published_again_gets_a_new_number(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        prompts.expire(["sst2:1"])
        again = prompts.publish(sample_prompt(0), sample_task())
        assert again.number == 2
        assert prompts.pull("sst2:2", for_model=None).prompt.embeddings.any()

    def test_publishing_again_mends_what_was_lost(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        version = prompts.publish(sample_prompt(), sample_task())
        for key in (BlobKey("payload", version.payload), BlobKey("manifest", version.digest)):
            objects.delete(str(key))
        with pytest.raises(CorruptError, match="sst2:1 is in the log but its bytes are not"):
            prompts.pull("sst2:1", for_model=None)
        prompts.publish(sample_prompt(), sample_task())
        prompts.pull("sst2:1", for_model=None)

    @pytest.mark.parametrize("metrics", [{"loss": float("nan")}, {"loss": float("inf")}, {"\ud800": 1.0}])
    def test_metrics_that_cannot_be_written_are_refused(self, prompts: PromptStore, metrics: dict[str, float]) -> None:
        with pytest.raises(InvalidInputError):
            prompts.publish(sample_prompt(), sample_task(), metrics=metrics)
        assert prompts.refresh().number == 0

    def test_bytes_are_there_before_their_name(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        objects.script = lambda call: Fault.UNAVAILABLE if call.key.startswith("manifests/") else None
        with pytest.raises(PromptStoreError):
            publish_samples(prompts)
        assert prompts.refresh().number == 0


class TestPull:
    def test_another_model_is_refused(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        with pytest.raises(IncompatibleModelError, match="sst2:1 was fitted to tiny but the loaded model is huge"):
            prompts.pull("sst2:1", for_model=sample_fingerprint(model="huge"))

    @pytest.mark.parametrize(
        "ref", ["sst2", "sst2:2", "sst3:1", "sst2@sha256:" + "0" * 64, PromptRef("sst2", alias="x")]
    )
    def test_what_is_not_there_is_not_found(self, prompts: PromptStore, ref: PromptRef | str) -> None:
        publish_samples(prompts)
        with pytest.raises(NotFoundError):
            prompts.pull(ref, for_model=None)

    def test_a_version_is_found_by_number_alias_and_digest(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 3)
        prompts.promote("sst2:2", "staging")
        digest = prompts.resolve("sst2:2").digest
        assert prompts.resolve("sst2@staging") == prompts.resolve(f"sst2@sha256:{digest}") == prompts.resolve("sst2:2")

    @pytest.mark.parametrize("fault", [Fault.TRUNCATED, Fault.CORRUPT])
    def test_a_damaged_answer_is_asked_for_again(
        self, prompts: PromptStore, objects: ScriptedObjects, fault: Fault
    ) -> None:
        publish_samples(prompts)
        damaged = set[str]()

        def damage_once(call: Any) -> Fault | None:
            if call.verb != "get" or call.key in damaged:
                return None
            damaged.add(call.key)
            return fault

        objects.script = damage_once
        prompts.pull("sst2:1", for_model=None)
        assert len(damaged) == 2

    @pytest.mark.parametrize("kind", ["payloads", "manifests"])
    @pytest.mark.parametrize("bit", [0, 77, -1])
    def test_a_flipped_bit_in_the_store_is_found(
        self, prompts: PromptStore, objects: ScriptedObjects, kind: str, bit: int
    ) -> None:
        publish_samples(prompts)
        key = next(info.key for info in objects.list(kind))
        data = bytearray(objects.get(key))
        data[bit] ^= 4
        objects.put(key, bytes(data))
        with pytest.raises(CorruptError, match=kind):
            prompts.pull("sst2:1", for_model=None)

    def test_a_manifest_of_another_version_does_not_pass(self, prompts: PromptStore) -> None:
        """The log says which payload belongs to which manifest; a writer of nonsense is caught at pull."""
        publish_samples(prompts)
        from promptstore.core.operation import Publish

        version = prompts.resolve("sst2:1")
        prompts.ledger.commit(lambda _: [Publish("other", 1, version.digest, version.payload)], reason="nonsense")
        with pytest.raises(CorruptError, match="another task or payload"):
            prompts.pull("other:1", for_model=None)

    def test_a_reader_that_did_not_see_the_expiry_is_told_of_it(
        self, prompts: PromptStore, objects: ScriptedObjects
    ) -> None:
        publish_samples(prompts)
        reader = reopened(objects)
        version = prompts.expire(["sst2:1"])[0]
        objects.delete(str(BlobKey("payload", version.payload)))
        with pytest.raises(NotFoundError, match="expired"):
            reader.pull("sst2:1", for_model=None)

    def test_a_reader_that_did_not_see_the_alias_move_on_gets_what_it_points_at_now(
        self, prompts: PromptStore, objects: ScriptedObjects
    ) -> None:
        publish_samples(prompts, 2)
        prompts.promote("sst2:1", "staging")
        reader = reopened(objects)
        prompts.promote("sst2:2", "staging")
        version = prompts.expire(["sst2:1"])[0]
        objects.delete(str(BlobKey("manifest", version.digest)))
        assert reader.pull("sst2@staging", for_model=None).version.number == 2


class TestRemoval:
    def test_a_deleted_alias_is_gone_and_in_history(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        prompts.promote("sst2:1", "staging")
        with pytest.raises(ConflictError):
            prompts.delete_alias("sst2", "staging", expected=2)
        prompts.delete_alias("sst2", "staging", expected=1, reason="unused")
        assert aliases_of(prompts) == {}
        assert prompts.history()[-1].after is None
        with pytest.raises(NotFoundError):
            prompts.delete_alias("sst2", "staging")

    def test_expiry_is_all_or_nothing_and_safe_to_repeat(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 3)
        prompts.promote("sst2:3", "staging")
        with pytest.raises(RefusedError, match="staging points at"):
            prompts.expire(["sst2:1", "sst2:3"])
        for _ in range(2):
            expired = prompts.expire(["sst2:1", "sst2:2", "sst2:1"], reason="old")
        assert [each.is_expired for each in expired] == [True] * 3
        assert [each.is_expired for each in prompts.state.task("sst2").versions] == [True, True, False]

    def test_expiring_nothing_that_exists_is_not_found(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        with pytest.raises(NotFoundError):
            prompts.expire(["sst2:2"])


class TestLookingBack:
    def test_the_state_at_any_moment_comes_from_the_log(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        publish_samples(prompts, 120)
        seen = []
        for number in range(1, 90):
            prompts.promote(f"sst2:{number}", "staging")
            seen.append((datetime.fromisoformat(prompts.state.at), prompts.state))
        reader = reopened(objects)
        assert reader.at(START).number == 0
        for moment, state in seen:
            assert reader.at(moment) == state
            assert reader.at(moment + timedelta(milliseconds=999)) == state
            assert reader.at(moment - timedelta(microseconds=1)).number == state.number - 1
        assert reader.at(datetime(2999, 1, 1, tzinfo=UTC)) == prompts.state

    def test_a_past_that_was_written_anew_is_not_believed(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        """Somebody who may write, and chains rightly: another version was in use, they say, up to a moment."""
        publish_samples(prompts, 3)
        prompts.promote("sst2:1", "staging")
        moment = datetime.fromisoformat(prompts.state.at)
        prompts.promote("sst2:3", "staging")
        reader = reopened(objects)
        told = read_commit(objects, 4)
        lie = replace(told, operations=(MoveAlias("sst2", "staging", None, 2),))
        objects.put(commit_key(4), lie.to_bytes())
        with pytest.raises(CorruptError, match=r"log up to commit 4 .* commit 5"):
            reader.at(moment)
        objects.put(commit_key(4), told.to_bytes())
        assert reader.at(moment).resolve(PromptRef("sst2", alias="staging")).number == 1

    def test_looking_back_costs_a_bisection_and_a_tail(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        publish_samples(prompts, 350)
        moment = datetime.fromisoformat(prompts.resolve("sst2:230").at)
        objects.calls.clear()
        assert prompts.at(moment).number == 230
        assert len(objects.calls) < 9 + 3 + 30 + 16

    def test_history_of_all_tasks_is_in_order(self, prompts: PromptStore) -> None:
        for task in ("b", "a"):
            publish_samples(prompts, 1, task)
        for task in ("b", "a"):
            prompts.promote(f"{task}:1", "staging")
        assert [each.task for each in prompts.history()] == ["b", "a"]
        assert [each.task for each in prompts.history("a")] == ["a"]

    def test_a_difference_names_what_changed(self, prompts: PromptStore) -> None:
        prompts.publish(sample_prompt(), sample_task(), metrics={"accuracy": 0.5})
        halved = SoftPrompt(np.float32(0.5) * sample_prompt().embeddings, sample_fingerprint())
        prompts.publish(halved, replace(sample_task(), template="{text}"), metrics={"accuracy": 0.75})
        found = {each.path: (each.before, each.after) for each in prompts.diff("sst2:1", "sst2:2")}
        assert found["metrics.accuracy"] == (0.5, 0.75)
        assert found["task.template"][1] == "{text}"
        assert found["embeddings.mean_cosine"][1] == pytest.approx(1)
        assert found["embeddings.largest_change"][1] == pytest.approx(np.abs(halved.embeddings).max())
        assert prompts.diff("sst2:1", "sst2:1") == []


class TestCache:
    def test_a_cached_prompt_is_pulled_without_the_store(self, objects: ScriptedObjects, tmp_path: Path) -> None:
        publish_samples(sample_store(objects))
        cache = PromptCache(tmp_path, 1 << 20)
        reader = PromptStore(Ledger.open(objects, actor="r"), objects, cache=cache)
        first = reader.pull("sst2:1", for_model=None)
        objects.calls.clear()
        assert reader.pull("sst2:1", for_model=None).manifest == first.manifest
        assert objects.calls == []

    def test_a_damaged_entry_is_fetched_again(self, objects: ScriptedObjects, tmp_path: Path) -> None:
        publish_samples(sample_store(objects))
        cache = PromptCache(tmp_path, 1 << 20)
        reader = PromptStore(Ledger.open(objects, actor="r"), objects, cache=cache)
        reader.pull("sst2:1", for_model=None)
        entries = [path for path in tmp_path.rglob("*") if path.is_file()]
        for path in entries:
            path.write_bytes(path.read_bytes()[:-1])
        reader.pull("sst2:1", for_model=None)
        objects.calls.clear()
        reader.pull("sst2:1", for_model=None)
        assert objects.calls == []
        assert len(entries) == 2
