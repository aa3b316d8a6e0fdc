"""Signed logs, trusted keys, and stores that go back in time."""

import base64
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from promptstore.core.commit import Commit, Signature
from promptstore.errors import CorruptError, InvalidInputError, NotFoundError, PromptStoreError, UntrustedError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store import ledger
from promptstore.store.checkpoints import encode_checkpoint
from promptstore.store.following import follow
from promptstore.store.layout import checkpoint_key, commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.memory import HeadMemory
from promptstore.store.prompt_store import PromptStore
from promptstore.store.trust import Signer, TrustPolicy, generate_key
from promptstore.testing.store_samples import IMPATIENT, sample_prompt, sample_task


def key() -> tuple[Signer, TrustPolicy]:
    private = Ed25519PrivateKey.generate()
    return Signer(private), TrustPolicy({Signer(private).key: private.public_key()})


def store(objects: MemoryObjectStore, **options: Any) -> PromptStore:
    return PromptStore(Ledger.create(objects, actor="ada", patience=IMPATIENT, **options), objects)


def reader(objects: MemoryObjectStore, **options: Any) -> Ledger:
    return Ledger.open(objects, actor="reader", patience=IMPATIENT, **options)


def publish(prompts: PromptStore, seed: int = 0) -> None:
    prompts.publish(sample_prompt(seed), sample_task())


@pytest.fixture
def objects() -> MemoryObjectStore:
    return MemoryObjectStore("shared")


class TestSignatures:
    def test_a_signed_log_is_read_by_those_who_trust_the_key(self, objects: MemoryObjectStore) -> None:
        signer, trust = key()
        publish(store(objects, signer=signer))
        assert reader(objects, trust=trust).state.number == 1
        assert reader(objects).state.number == 1

    def test_an_unsigned_commit_is_refused_by_name(self, objects: MemoryObjectStore) -> None:
        _, trust = key()
        publish(store(objects))
        with pytest.raises(UntrustedError, match=r"commit 1 \(ada, .*\) is not signed"):
            reader(objects, trust=trust)

    def test_a_foreign_commit_is_refused_and_the_reader_stays(self, objects: MemoryObjectStore) -> None:
        (signer, trust), (stranger, _) = key(), key()
        publish(store(objects, signer=signer))
        ledger = reader(objects, trust=trust)
        publish(store(objects, signer=stranger), 1)
        with pytest.raises(UntrustedError, match=f"commit 2 .* signed only by {stranger.key[:12]}"):
            ledger.refresh()
        assert ledger.state.number == 1
        with pytest.raises(UntrustedError):
            list(ledger.commits())

    def test_every_trusted_key_counts(self, objects: MemoryObjectStore) -> None:
        one, two = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        publish(store(objects, signer=Signer(one)))
        publish(store(objects, signer=Signer(two)), 1)
        keys = {Signer(each).key: each.public_key() for each in (one, two)}
        assert reader(objects, trust=TrustPolicy(keys)).state.number == 2

    @pytest.mark.parametrize(
        "change",
        [
            {"reason": "altered"},
            {"at": "2030-01-01T00:00:00.000000Z"},
            {"actor": "eve"},
            {"id": "other"},
            {"operations": ()},
            {"parent": "0" * 64},
        ],
    )
    def test_an_altered_commit_is_refused(self, objects: MemoryObjectStore, change: dict[str, Any]) -> None:
        signer, trust = key()
        publish(store(objects, signer=signer))
        commit = Commit.from_bytes(objects.get(commit_key(1)), 1)
        trust.require(commit)
        with pytest.raises(UntrustedError, match="does not fit"):
            trust.require(replace(commit, **change))

    @pytest.mark.parametrize("value", ["", "not base64!", base64.b64encode(bytes(64)).decode(), "AAAA"])
    def test_a_bad_signature_is_refused(self, objects: MemoryObjectStore, value: str) -> None:
        signer, trust = key()
        publish(store(objects, signer=signer))
        commit = Commit.from_bytes(objects.get(commit_key(1)), 1)
        with pytest.raises(UntrustedError):
            trust.require(replace(commit, signatures=(Signature(signer.key, value),)))

    def test_a_signed_commit_cannot_be_replayed_into_another_store(self, objects: MemoryObjectStore) -> None:
        signer, trust = key()
        publish(store(objects, signer=signer))
        other = MemoryObjectStore()
        store(other, signer=signer)
        other.put(commit_key(1), objects.get(commit_key(1)))
        with pytest.raises(PromptStoreError, match="does not follow"):
            reader(other, trust=trust)

    def test_a_writer_cannot_lock_itself_out(self, objects: MemoryObjectStore) -> None:
        _, trust = key()
        prompts = store(objects, signer=key()[0], trust=trust)
        with pytest.raises(UntrustedError):
            publish(prompts)
        assert reader(objects).state.number == 0

    def test_a_checkpoint_counts_on_the_word_of_a_trusted_key_alone(self, objects: MemoryObjectStore) -> None:
        """A stranger extends a trusted log at the very commit that names a checkpoint, and lies in it."""
        signer, trust = key()
        prompts = store(objects, signer=signer)
        for seed in range(100):
            publish(prompts, seed)
        stranger, _ = key()
        lie = encode_checkpoint(replace(prompts.state, tasks={}))
        import hashlib

        forged = Commit(
            101, "x", prompts.state.digest, prompts.state.at, "eve", "", (), hashlib.sha256(lie).hexdigest()
        )
        objects.put(commit_key(101), stranger.sign(forged).to_bytes())
        objects.put(checkpoint_key(100), lie)
        assert reader(objects).state.tasks == {}
        with pytest.raises(UntrustedError):
            reader(objects, trust=trust)


class TestKeyFiles:
    def test_generated_keys_sign_and_are_trusted(self, tmp_path: Path, objects: MemoryObjectStore) -> None:
        made = generate_key(tmp_path, "ada")
        signer = Signer.load(tmp_path / "ada.key")
        assert signer.key == made
        publish(store(objects, signer=signer))
        trust = TrustPolicy.load(tmp_path)
        assert trust.keys == {made}
        assert reader(objects, trust=trust).state.number == 1

    def test_keys_made_by_openssl_work(self, tmp_path: Path) -> None:
        private, public = tmp_path / "o.key", tmp_path / "o.pub"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
        private.chmod(0o600)
        assert TrustPolicy.load(tmp_path).keys == {Signer.load(private).key}

    def test_a_key_is_never_overwritten(self, tmp_path: Path) -> None:
        generate_key(tmp_path, "ada")
        before = (tmp_path / "ada.key").read_bytes()
        with pytest.raises(InvalidInputError, match="never overwritten"):
            generate_key(tmp_path, "ada")
        assert (tmp_path / "ada.key").read_bytes() == before

    def test_a_private_key_that_others_may_read_is_refused(self, tmp_path: Path) -> None:
        generate_key(tmp_path, "ada")
        assert (tmp_path / "ada.key").stat().st_mode & 0o777 == 0o600
        (tmp_path / "ada.key").chmod(0o644)
        with pytest.raises(InvalidInputError, match="chmod 600"):
            Signer.load(tmp_path / "ada.key")

    def test_what_is_no_key_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="not valid"):
            generate_key(tmp_path, "../ada")
        with pytest.raises(NotFoundError):
            Signer.load(tmp_path / "none.key")
        with pytest.raises(NotFoundError):
            TrustPolicy.load(tmp_path / "none")
        with pytest.raises(InvalidInputError, match="no commit would count"):
            TrustPolicy.load(tmp_path)
        for name in ("bad.key", "bad.pub"):
            (tmp_path / name).write_text("nonsense")
            (tmp_path / name).chmod(0o600)
        with pytest.raises(InvalidInputError, match=r"bad\.key"):
            Signer.load(tmp_path / "bad.key")
        with pytest.raises(InvalidInputError, match=r"bad\.pub"):
            TrustPolicy.load(tmp_path)
        subprocess.run(["openssl", "genrsa", "-out", tmp_path / "rsa.key", "1024"], check=True, capture_output=True)
        with pytest.raises(InvalidInputError, match="expected Ed25519"):
            Signer.load(tmp_path / "rsa.key")


class TestMemory:
    def fork(self, objects: MemoryObjectStore, commits: int) -> MemoryObjectStore:
        """What a backup taken at that commit holds, restored to the same place."""
        old = MemoryObjectStore("shared")
        for info in objects.list(""):
            if not info.key.startswith("commits/") or info.key <= commit_key(commits):
                old.put(info.key, objects.get(info.key))
        return old

    @pytest.fixture
    def memory(self, tmp_path: Path) -> HeadMemory:
        return HeadMemory(tmp_path / "heads")

    def test_a_store_that_goes_on_is_fine(self, objects: MemoryObjectStore, memory: HeadMemory) -> None:
        prompts = store(objects, memory=memory)
        for seed in range(3):
            publish(prompts, seed)
            assert reader(objects, memory=memory).state.number == seed + 1
        publish(store(objects), 9)
        assert reader(objects, memory=memory).state.number == 4

    def test_what_others_see_while_the_log_is_read_is_not_held_against_it(
        self, objects: MemoryObjectStore, memory: HeadMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prompts = store(objects, memory=memory)
        publish(prompts)
        overtaken_by, here = [1], threading.get_ident()

        def followed(*given: Any) -> Iterator[Any]:
            yield from follow(*given)
            if overtaken_by and threading.get_ident() == here:  # servers of other tests follow stores of theirs
                publish(prompts, overtaken_by.pop())

        monkeypatch.setattr(ledger, "follow", followed)
        assert reader(objects, memory=memory).state.number == 1
        assert reader(objects, memory=memory).state.number == 2

    def test_a_rolled_back_store_is_refused(self, objects: MemoryObjectStore, memory: HeadMemory) -> None:
        prompts = store(objects, memory=memory)
        for seed in range(3):
            publish(prompts, seed)
        with pytest.raises(UntrustedError, match=r"ends at commit 2, but commit 3 was seen.*delete"):
            reader(self.fork(objects, 2), memory=memory)

    def test_a_forked_store_is_refused(self, objects: MemoryObjectStore, memory: HeadMemory) -> None:
        prompts = store(objects, memory=memory)
        for seed in range(3):
            publish(prompts, seed)
        for length in (3, 5):
            forked = self.fork(objects, 2)
            for seed in range(2, length):
                publish(store(forked), seed + 50)
            with pytest.raises(UntrustedError, match=r"commit 3 is .* but was"):
                reader(forked, memory=memory)

    def test_a_store_made_anew_at_the_same_place_is_refused(
        self, objects: MemoryObjectStore, memory: HeadMemory
    ) -> None:
        publish(store(objects, memory=memory))
        replaced = MemoryObjectStore("shared")
        store(replaced)
        with pytest.raises(UntrustedError, match="it was replaced"):
            reader(replaced, memory=memory)
        elsewhere = MemoryObjectStore("elsewhere")
        store(elsewhere)
        assert reader(elsewhere, memory=memory).state.number == 0

    def test_a_mirror_that_was_written_to_is_refused(self, objects: MemoryObjectStore, memory: HeadMemory) -> None:
        """The same store at two places: what was seen at one holds at the other."""
        prompts = store(objects, memory=memory)
        publish(prompts)
        mirror = MemoryObjectStore("mirror")
        for info in objects.list(""):
            mirror.put(info.key, objects.get(info.key))
        publish(prompts, 1)
        publish(store(mirror), 77)
        with pytest.raises(UntrustedError, match="commit 2 is"):
            reader(mirror, memory=memory)

    def test_a_damaged_note_of_what_was_seen_is_named_and_keeps_no_commit_from_being_made(
        self, objects: MemoryObjectStore, memory: HeadMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        prompts = store(objects, memory=memory)
        publish(prompts)
        notes = list(tmp_path.rglob("store-*.json"))
        for note in notes:
            note.write_text("{")
        publish(prompts, 1)
        assert "not remembered" in caplog.text
        with pytest.raises(CorruptError, match=rf"{notes[0].name}.*delete it"):
            reader(objects, memory=memory)

    def test_a_machine_that_cannot_remember_works_on(
        self, objects: MemoryObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        publish(store(objects, memory=HeadMemory(tmp_path / "file")))
        assert reader(objects).state.number == 1
        assert "not remembered" in caplog.text
