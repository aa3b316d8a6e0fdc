"""The log delivered to a real receiver that fails and loses answers; signatures are checked by another library."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from promptstore.errors import ConflictError, InvalidInputError, RefusedError, UntrustedError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.outbox.delivery import Backoff, Outbox, OutboxPlace
from promptstore.outbox.signing import SigningSecret, parse_secrets
from promptstore.outbox.webhook import Webhook
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing import scripted_objects
from promptstore.testing.receiver import Fault, Received, receiver
from promptstore.testing.scripted_objects import ScriptedObjects, behave
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task

KEYS = [SigningSecret.new()]
ALL = ["1.0", "2.0", "3.0", "4.0", "4.1"]


@pytest.fixture
def prompts() -> PromptStore:
    prompts = sample_store(MemoryObjectStore())
    for seed in range(3):
        prompts.publish(sample_prompt(seed), sample_task())
    prompts.expire(["sst2:1", "sst2:2"], reason="old")
    return prompts


def place(folder: Path, name: str = "hook") -> OutboxPlace:
    return OutboxPlace(folder, name)


class Pauses(list[float]):
    """A sleep that notes how long it was asked for."""

    def __call__(self, pause_s: float) -> None:
        assert len(self) < 20, "it would go on for ever"
        self.append(pause_s)


def outbox(folder: Path, hook: Webhook, pauses: Pauses | None = None) -> Outbox:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    pauses = Pauses() if pauses is None else pauses
    return Outbox(place(folder), hook, sleep=pauses, draw=lambda: 0.0, now=lambda: now)


def ids(received: list[Received]) -> list[str]:
    return [json.loads(each.body)["data"]["id"] for each in received]


def test_every_event_is_posted_once_in_order_and_signed(prompts: PromptStore, tmp_path: Path) -> None:
    with receiver() as hook, Webhook(hook.url, KEYS) as sink:
        assert outbox(tmp_path, sink).deliver(prompts.ledger, poll_s=None) == 5
        assert outbox(tmp_path, sink).deliver(prompts.ledger, poll_s=None) == 0
    assert ids(hook.received) == ALL
    first = hook.received[0]
    verified = Verifier(str(KEYS[0])).verify(first.body, first.headers)
    assert verified["type"] == "promptstore.publish"
    assert verified["timestamp"] == prompts.state.task("sst2").versions[0].at
    assert (verified["data"]["task"], verified["data"]["number"]) == ("sst2", 1)
    assert first.headers["webhook-id"] == f"{prompts.state.store_id}-1-0"
    assert len({each.headers["webhook-id"] for each in hook.received}) == 5
    for changed in (
        {**first.headers, "webhook-id": "x"},
        {**first.headers, "webhook-timestamp": str(int(first.headers["webhook-timestamp"]) + 1)},
    ):
        with pytest.raises(WebhookVerificationError):
            Verifier(str(KEYS[0])).verify(first.body, changed)
    with pytest.raises(WebhookVerificationError):
        Verifier(str(KEYS[0])).verify(first.body + b" ", first.headers)


def test_while_a_secret_is_replaced_both_receivers_can_check(prompts: PromptStore, tmp_path: Path) -> None:
    old, new = SigningSecret.new(), SigningSecret.new()
    with receiver() as hook, Webhook(hook.url, parse_secrets(f"{new}\n{old}\n")) as sink:
        outbox(tmp_path, sink).deliver(prompts.ledger, poll_s=None)
    for secret in (old, new):
        assert Verifier(str(secret)).verify(hook.received[0].body, hook.received[0].headers)


def test_failures_and_lost_answers_repeat_an_event_and_never_overtake_it(
    prompts: PromptStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[Fault] = [503, None, "lose", 500, 301, None, None, "lose", None, None]
    pauses = Pauses()
    with receiver(faults.__getitem__) as hook, Webhook(hook.url, KEYS) as sink:
        assert outbox(tmp_path, sink, pauses).deliver(prompts.ledger, poll_s=None) == 5
    assert ids(hook.received) == ["1.0", "1.0", "2.0", "2.0", "2.0", "2.0", "3.0", "4.0", "4.0", "4.1"]
    assert ids([each for each in hook.received if each.is_taken]) == ALL
    by_id = {event: {each.headers["webhook-id"] for each in hook.received if ids([each]) == [event]} for event in ALL}
    assert all(len(found) == 1 for found in by_id.values()), "a repeated event has the id it had"
    assert pauses == [1.0, 1.0, 2.0, 4.0, 1.0]
    assert place(tmp_path).stuck() is None
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said[0] == (
        "outbox hook is stuck on event 1.0 (publish sst2) since 2026-03-01T00:00:00.000000Z, try 1 failed, next in "
        f"1.0 s: {hook.url} answered 503 Service Unavailable"
    )


def test_what_it_is_stuck_on_can_be_read_while_it_is_stuck(prompts: PromptStore, tmp_path: Path) -> None:
    seen = []
    stuck = place(tmp_path)

    class Watching(Pauses):
        def __call__(self, pause_s: float) -> None:
            super().__call__(pause_s)
            seen.append(stuck.stuck())

    with receiver(lambda number: 500 if number < 2 else None) as hook, Webhook(hook.url, KEYS) as sink:
        outbox(tmp_path, sink, Watching()).deliver(prompts.ledger, poll_s=None)
    assert [found and (found["event"], found["what"], found["tries"]) for found in seen] == [
        ("1.0", "publish sst2", 1),
        ("1.0", "publish sst2", 2),
    ]


def test_a_receiver_that_is_gone_ends_the_outbox_and_keeps_its_place(prompts: PromptStore, tmp_path: Path) -> None:
    with receiver(lambda number: 410 if number == 2 else None) as hook, Webhook(hook.url, KEYS) as sink:
        with pytest.raises(RefusedError, match="answered 410 Gone: it wants no more events"):
            outbox(tmp_path, sink).deliver(prompts.ledger, poll_s=None)
        assert place(tmp_path).cursor.load(prompts.ledger) == 2
        assert outbox(tmp_path, sink).deliver(prompts.ledger, poll_s=None) == 3


def test_the_receivers_wish_for_a_pause_is_kept(prompts: PromptStore, tmp_path: Path) -> None:
    pauses = Pauses()
    with receiver(lambda number: 429 if number == 0 else None) as hook, Webhook(hook.url, KEYS) as sink:
        outbox(tmp_path, sink, pauses).deliver(prompts.ledger, poll_s=None)
    assert pauses == [7.0]
    backoff = Backoff(first_s=1, longest_s=60)
    assert [backoff.pause_s(n, lambda: 0.0) for n in (1, 2, 3, 7, 1000)] == [1, 2, 4, 60, 60]
    assert backoff.pause_s(3, lambda: 1.0) == 2


def test_some_operations_alone_and_only_what_is_new(prompts: PromptStore, tmp_path: Path) -> None:
    with receiver() as hook, Webhook(hook.url, KEYS) as sink:
        box = outbox(tmp_path, sink)
        assert box.deliver(prompts.ledger, only={"publish"}, skips_history=True, poll_s=None) == 0
        prompts.publish(sample_prompt(8), sample_task())
        prompts.promote("sst2:4", "staging", reason="look")
        assert box.deliver(prompts.ledger, only={"publish"}, skips_history=True, poll_s=None) == 1
    assert ids(hook.received) == ["5.0"]


def test_what_comes_to_a_log_that_was_empty_is_no_history(tmp_path: Path) -> None:
    prompts = sample_store(MemoryObjectStore())
    with receiver() as hook, Webhook(hook.url, KEYS) as sink:
        box = outbox(tmp_path, sink)
        assert box.deliver(prompts.ledger, skips_history=True, poll_s=None) == 0
        prompts.publish(sample_prompt(), sample_task())
        assert box.deliver(prompts.ledger, skips_history=True, poll_s=None) == 1


def test_a_store_that_does_not_answer_for_a_while_is_waited_for(
    prompts: PromptStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = ScriptedObjects(prompts.ledger.objects)
    ledger = Ledger.open(objects, actor="outbox")
    objects.script = lambda call: scripted_objects.Fault.UNAVAILABLE if call.verb == "get" else None

    class Mending(Pauses):
        def __call__(self, pause_s: float) -> None:
            super().__call__(pause_s)
            objects.script = behave

    pauses = Mending()
    with receiver() as hook, Webhook(hook.url, KEYS) as sink:
        assert outbox(tmp_path, sink, pauses).deliver(ledger, poll_s=None) == 5
    assert pauses == [1.0]
    assert "cannot read the log, next try in 1.0 s" in caplog.text


def test_two_senders_of_one_outbox_are_refused(prompts: PromptStore, tmp_path: Path) -> None:
    lock = place(tmp_path).lock
    assert lock.take("the other")
    with (
        Webhook("http://127.0.0.1:9/", KEYS) as sink,
        pytest.raises(ConflictError, match="delivered already, by the other"),
    ):
        outbox(tmp_path, sink).deliver(prompts.ledger, poll_s=None)


def test_a_place_of_another_store_is_refused(prompts: PromptStore, tmp_path: Path) -> None:
    with receiver() as hook, Webhook(hook.url, KEYS) as sink:
        outbox(tmp_path, sink).deliver(prompts.ledger, poll_s=None)
        other = sample_store(MemoryObjectStore())
        with pytest.raises(UntrustedError, match="is of store"):
            outbox(tmp_path, sink).deliver(other.ledger, poll_s=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no webhook secret"),
        ("hunter2", "starts with whsec_"),
        ("whsec_!!!", "is not base64"),
        ("whsec_c2hvcnQ=", "has 5 bytes, expected 24 to 64"),
    ],
)
def test_a_bad_secret_is_refused_without_being_repeated(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refused:
        parse_secrets(text)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("url", ["", "ftp://host/", "host/path", "http:///path"])
def test_a_url_that_cannot_be_posted_to_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="webhook URL"):
        Webhook(url, KEYS)


def test_a_url_is_shown_without_what_is_secret_in_it() -> None:
    assert str(Webhook("https://user:pass@host/hook?token=1", KEYS)) == "https://host/hook"
