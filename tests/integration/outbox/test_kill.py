"""The sender as a process that is killed at every kind of moment, and started again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from standardwebhooks.webhooks import Webhook as Verifier

from promptstore.objects.local import LocalObjectStore
from promptstore.outbox.signing import SigningSecret
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.receiver import Fault, receiver
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task


def start(folder: Path, url: str, secret: SigningSecret) -> "subprocess.Popen[str]":
    environment = {
        **os.environ,
        "PROMPTSTORE_STORE": str(folder / "store"),
        "PROMPTSTORE_STATE_DIR": str(folder / "state"),
        "PROMPTSTORE_WEBHOOK_SECRET": str(secret),
    }
    arguments = [sys.executable, "-m", "promptstore", "outbox", "run", "--url", url, "--no-follow", "--poll", "0.1"]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def commits(prompts: PromptStore) -> list[str]:
    """Five events in four commits."""
    for seed in range(3):
        prompts.publish(sample_prompt(seed), sample_task())
    prompts.expire(["sst2:1", "sst2:2"], reason="old")
    return ["1.0", "2.0", "3.0", "4.0", "4.1"]


def test_a_killed_sender_goes_on_and_every_event_arrives_in_order(tmp_path: Path) -> None:
    """Killed as a request arrives, its answer not sent: at the first, in between, and within a commit."""
    secret = SigningSecret.new()
    expected = commits(sample_store(LocalObjectStore(tmp_path / "store")))
    senders: list[subprocess.Popen[str]] = []
    kill_at = {0, 2, 5}

    def kill_or_fail(number: int) -> Fault:
        if number in kill_at:
            senders[-1].send_signal(signal.SIGKILL)
            senders[-1].wait()
            return "lose"
        return 500 if number == 3 else None

    with receiver(kill_or_fail) as hook:
        while not senders or senders[-1].returncode:
            senders.append(start(tmp_path, hook.url, secret))
            _, said = senders[-1].communicate(timeout=120)
    assert [sender.returncode for sender in senders] == [-signal.SIGKILL] * 3 + [0], said
    taken: list[str] = []
    for each in hook.received:
        event = Verifier(str(secret)).verify(each.body, each.headers)["data"]["id"]
        if each.is_taken and event not in taken:
            taken.append(event)
    assert taken == expected
    sent = [json.loads(each.body)["data"]["id"] for each in hook.received]
    assert sent == ["1.0", "1.0", "2.0", "2.0", "2.0", "3.0", "3.0", "4.0", "4.1"]
    assert "from commit 3 on" in said
