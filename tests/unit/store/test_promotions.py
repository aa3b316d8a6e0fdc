"""Which version an alias points at, who moved it and why."""

import pytest

from promptstore.core.ref import PromptRef
from promptstore.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import ScriptedObjects
from promptstore.testing.store_samples import (
    aliases_of,
    publish_samples,
    reopened,
    sample_prompt,
    sample_task,
)

PASS = Statement("gate", {"verdict": "pass"})
FAIL = Statement("gate", {"verdict": "fail"})


class TestPromote:
    def test_an_alias_moves_and_history_keeps_it(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 2)
        prompts.attest("sst2:1", "gate", {"verdict": "pass"})
        prompts.promote("sst2:1", reason="better", actor="ada")
        prompts.promote("sst2:2", "production", force=True, reason="hotfix", expected=1)
        moves = prompts.history("sst2")
        assert [(each.before, each.after, each.actor, each.reason, each.forced) for each in moves] == [
            (None, 1, "ada", "better", False),
            (1, 2, "tester", "hotfix", True),
        ]

    def test_a_protected_alias_asks_for_a_gate(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        with pytest.raises(RefusedError, match="no passing gate"):
            prompts.promote("sst2:1")
        with pytest.raises(RefusedError, match="needs a reason"):
            prompts.promote("sst2:1", force=True)
        prompts.promote("sst2:1", "staging")
        assert aliases_of(prompts) == {"staging": 1}

    def test_force_where_none_is_needed_is_not_held_against_anybody(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        prompts.attest("sst2:1", "gate", {"verdict": "pass"})
        prompts.promote("sst2:1", force=True)
        prompts.promote("sst2:1", "staging", force=True)
        assert not any(each.forced for each in prompts.history())

    def test_expected_is_compare_and_swap_at_the_end_of_the_log(
        self, prompts: PromptStore, objects: ScriptedObjects
    ) -> None:
        publish_samples(prompts, 3)
        stale = reopened(objects)
        prompts.promote("sst2:1", "staging", expected=None)
        with pytest.raises(ConflictError, match="points at version 1, expected nothing"):
            stale.promote("sst2:2", "staging", expected=None)
        stale.promote("sst2:2", "staging", expected=1)
        with pytest.raises(ConflictError, match="points at version 2, expected version 1"):
            prompts.promote("sst2:3", "staging", expected=1)
        assert aliases_of(prompts) == {"staging": 2}

    def test_repeating_a_promotion_changes_nothing(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        first = prompts.promote("sst2:1", "staging", expected=None)
        assert prompts.promote("sst2:1", "staging", expected=None) == first
        assert len(prompts.history()) == 1

    def test_an_alias_can_follow_another(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 2)
        prompts.promote("sst2:2", "candidate")
        prompts.promote("sst2@candidate", "staging")
        assert aliases_of(prompts) == {"candidate": 2, "staging": 2}

    def test_a_release_is_one_commit_or_none(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 1, "a")
        publish_samples(prompts, 1, "b")
        number = prompts.state.number
        moves = [Promotion(PromptRef(task, number=1), statements=[PASS]) for task in ("a", "b")]
        released = prompts.release(moves, reason="new base")
        assert [str(each) for each in released] == ["a:1", "b:1"]
        assert all(each.has_passed_gate for each in released)
        assert prompts.state.number == number + 1
        publish_samples(prompts, 1, "a")
        bad = [Promotion(PromptRef("a", number=2), statements=[PASS]), Promotion(PromptRef("b", number=9))]
        with pytest.raises(NotFoundError):
            prompts.release(bad, reason="typo")
        assert aliases_of(prompts, "a") == {"production": 1}
        assert not prompts.resolve("a:2").attestations

    def test_a_failing_gate_in_a_release_stops_it(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        with pytest.raises(RefusedError):
            prompts.release([Promotion(PromptRef("sst2", number=1), statements=[FAIL])], reason="x")
        forced = Promotion(PromptRef("sst2", number=1), statements=[FAIL], force=True)
        prompts.release([forced], reason="we know")
        assert prompts.history()[-1].forced

    def test_saying_the_same_again_adds_nothing(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        for _ in range(2):
            version = prompts.attest("sst2:1", "approval", {"by": "grace", "rows": [1, 2]})
        assert len(version.attestations) == 1
        assert prompts.attest("sst2:1", "approval", {"by": "alan"}).attestations[1].body == {"by": "alan"}

    def test_a_statement_is_small(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        with pytest.raises(InvalidInputError, match="name them by digest"):
            prompts.attest("sst2:1", "evaluation", {"predictions": ["x" * 10] * 10_000})

    def test_a_statement_reads_the_same_to_its_writer_as_to_everybody(
        self, prompts: PromptStore, objects: ScriptedObjects
    ) -> None:
        publish_samples(prompts)
        mine = prompts.attest("sst2:1", "evaluation", {"pair": (1, 2)})
        assert mine == reopened(objects).resolve("sst2:1")


class TestPublishUnderAnAlias:
    def test_version_and_move_are_one_commit(self, prompts: PromptStore, objects: ScriptedObjects) -> None:
        version = prompts.publish(sample_prompt(1), sample_task(), alias="staging", reason="first")
        assert (version.number, prompts.state.number) == (1, 1)
        assert reopened(objects).resolve("sst2@staging").digest == version.digest
        second = prompts.publish(sample_prompt(2), sample_task(), alias="staging")
        (_, move) = prompts.history("sst2")
        assert (move.before, move.after, move.commit) == (1, 2, second.commit)

    def test_what_is_published_already_is_pointed_at_and_repeating_it_changes_nothing(
        self, prompts: PromptStore
    ) -> None:
        publish_samples(prompts, 2)
        for _ in range(2):
            assert prompts.publish(sample_prompt(0), sample_task(), alias="staging").number == 1
        assert (prompts.state.number, prompts.resolve("sst2@staging").number) == (3, 1)

    def test_a_protected_alias_needs_force_and_a_reason_or_nothing_is_published(self, prompts: PromptStore) -> None:
        for given in ({}, {"force": True}):
            with pytest.raises(RefusedError):
                prompts.publish(sample_prompt(1), sample_task(), alias="production", **given)  # type: ignore[arg-type]
        assert prompts.refresh().number == 0
        prompts.publish(sample_prompt(1), sample_task(), alias="production", force=True, reason="hand-made")
        assert prompts.history()[-1].forced


class TestRollback:
    def test_it_returns_to_the_version_before(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 2)
        for number in (1, 2):
            prompts.promote(f"sst2:{number}", "staging")
        assert prompts.rollback("sst2", "staging", reason="worse").number == 1
        assert prompts.history()[-1].reason == "worse"

    def test_twice_goes_back_by_two_and_not_to_and_fro(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 4)
        for number in (1, 2, 3):
            prompts.promote(f"sst2:{number}", "staging")
        assert [prompts.rollback("sst2", "staging").number for _ in range(2)] == [2, 1]
        prompts.promote("sst2:4", "staging")
        assert prompts.rollback("sst2", "staging").number == 1
        with pytest.raises(NotFoundError, match="no other version"):
            prompts.rollback("sst2", "staging")

    def test_it_passes_over_expired_versions(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 3)
        for number in (1, 2, 3):
            prompts.promote(f"sst2:{number}", "staging")
        prompts.expire(["sst2:2"])
        assert prompts.rollback("sst2", "staging").number == 1

    def test_it_needs_no_gate_but_then_a_reason(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 2)
        for number in (1, 2):
            prompts.promote(f"sst2:{number}", force=True, reason="hand-made")
        with pytest.raises(RefusedError, match="needs a reason"):
            prompts.rollback("sst2")
        prompts.rollback("sst2", reason="outage")
        assert prompts.history()[-1].forced

    def test_to_a_version_of_ones_choice(self, prompts: PromptStore) -> None:
        publish_samples(prompts, 4)
        for number in (1, 2, 3):
            prompts.promote(f"sst2:{number}", "staging")
        assert prompts.rollback("sst2", "staging", to=1).number == 1

    def test_it_is_no_way_around_the_gate(self, prompts: PromptStore) -> None:
        """What an alias never pointed at was never let in."""
        publish_samples(prompts, 2)
        prompts.promote("sst2:1", force=True, reason="hand-made")
        for to in (2, 9):
            with pytest.raises(NotFoundError, match=f"never pointed at version {to}"):
                prompts.rollback("sst2", to=to, reason="in a hurry")
        assert prompts.resolve("sst2@production").number == 1

    def test_without_an_alias_there_is_nothing_to_roll_back(self, prompts: PromptStore) -> None:
        publish_samples(prompts)
        with pytest.raises(NotFoundError, match="no alias 'staging'"):
            prompts.rollback("sst2", "staging")
        with pytest.raises(NotFoundError, match="'sst3' is not in this store"):
            prompts.rollback("sst3")
