"""API keys as the command makes them, and what a server lets them do."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.errors import ConflictError, InvalidInputError
from promptstore.serving.access import Access
from promptstore.serving.api_keys import ApiKey, KeyFile, digest_key, read_keys
from promptstore.serving.options import ServerOptions
from promptstore.store.file_lock import FileLock
from promptstore.testing.served import SENTIMENT, live_server, store_of
from promptstore.testing.tiny_models import tiny_llama

ZEROS = "0" * 64
HELD = f'# ours\r\n[[key]]\nname = "held"  # Ada\'s\nsha256 = "{ZEROS}"\nscopes = [ "infer" ]'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def made(*arguments: str) -> str:
    """What the command says on stdout; what it raises, `main` would print as one line."""
    done = CliRunner().invoke(app, ["keys", "api", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def add(path: Path, name: str, *scopes: str) -> str:
    """The key that the command makes and adds to `path`."""
    return made(name, *(part for scope in scopes for part in ("--scope", scope)), "--file", str(path)).strip()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_printed_once_and_its_file_holds_only_the_digest(path: Path) -> None:
    secret = made("app", "--scope", "infer", "--scope", "admin", "--per-minute", "9", "--file", str(path))
    assert len(secret.splitlines()) == 1
    key = secret.strip()
    assert read_keys(path) == [ApiKey("app", digest_key(key), frozenset({"infer", "admin"}), 9)]
    assert key not in path.read_text()
    assert mode(path) == 0o600
    assert [each.name for each in path.parent.iterdir() if not each.name.endswith(".lock")] == ["keys.toml"]


def test_two_keys_differ(path: Path) -> None:
    assert add(path, "a", "infer") != add(path, "b", "infer")


def test_without_a_file_the_key_stands_alone_on_stdout_and_its_table_is_for_pasting(path: Path) -> None:
    done = CliRunner().invoke(app, ["keys", "api", "app", "--scope", "infer"], catch_exceptions=False)
    key = done.stdout.strip()
    assert done.stdout == f"{key}\n"
    path.write_text("[[key]]" + done.stderr.partition("[[key]]")[2])
    assert read_keys(path) == [ApiKey("app", digest_key(key), frozenset({"infer"}))]


@pytest.mark.parametrize("has_file", [False, True])
def test_json_says_the_same_in_one_value(path: Path, has_file: bool) -> None:
    said: dict[str, Any] = json.loads(
        made("app", "--scope", "infer", "--json", *(["--file", str(path)] if has_file else []))
    )
    if not has_file:
        path.write_text(said["table"])
    assert said["file"] == (str(path) if has_file else None)
    assert read_keys(path) == [ApiKey("app", digest_key(said["key"]), frozenset({"infer"}))]
    assert said["sha256"] == digest_key(said["key"])


@pytest.mark.parametrize("before", [HELD, f"{HELD}\n", f"{HELD}\r\n\n# the end"])
def test_what_a_key_file_held_stays_byte_for_byte(path: Path, before: str) -> None:
    path.write_bytes(before.encode())
    path.chmod(0o640)
    add(path, "new", "admin")
    assert path.read_bytes().startswith(before.encode())
    assert [each.name for each in read_keys(path)] == ["held", "new"]
    assert mode(path) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_file_stays_its_owners(path: Path) -> None:
    path.write_text(HELD)
    os.chown(path, 10001, 10002)
    add(path, "new", "infer")
    assert (path.stat().st_uid, path.stat().st_gid) == (10001, 10002)


@pytest.mark.parametrize("before", ["", "\n", "# ours", "# ours\n\n# and theirs\n"])
def test_a_key_file_without_keys_takes_a_first_one(path: Path, before: str) -> None:
    path.write_text(before)
    add(path, "first", "infer")
    assert [each.name for each in read_keys(path)] == ["first"]
    assert path.read_text().startswith(before.strip())


def test_a_linked_key_file_stays_linked(tmp_path: Path, path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere.toml")
    add(path, "a", "infer")
    assert path.is_symlink()
    assert [each.name for each in read_keys(tmp_path / "elsewhere.toml")] == ["a"]


@pytest.mark.parametrize(
    ("text", "name", "scope", "said"),
    [
        (HELD, "held", "infer", "has a key 'held' already; choose another name, or take that key back"),
        ("[[key]\n", "a", "infer", "key file .*keys.toml"),
        ("\xff", "a", "infer", "utf-8"),
        ('[[key]]\nname = "a"\n', "b", "infer", "key 1"),
        (f'[[key]]\nname = "a"\nsha256 = "{ZEROS}"\nscopes = [["infer"]]\n', "b", "infer", "key 1: scopes"),
        (f'key = [{{name = "a", sha256 = "{ZEROS}", scopes = ["infer"]}}]\n', "b", "infer", r"as a \[\[key\]\] table"),
        (HELD, 'a"\n[[key]]', "infer", "key name"),
        (HELD, "", "infer", "key name"),
        (HELD, "b", "all", "infer, admin"),
    ],
)
def test_what_cannot_be_added_is_refused_and_the_file_stays(
    path: Path, text: str, name: str, scope: str, said: str
) -> None:
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInputError, match=said):
        add(path, name, scope)
    assert path.read_bytes() == text.encode("latin-1")


def test_an_empty_variable_is_no_key_that_a_server_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTSTORE_API_KEY", "")
    with pytest.raises(InvalidInputError, match="no API keys are set"):
        CliRunner().invoke(app, ["serve", "--host", "0.0.0.0", "--store", "memory://none"], catch_exceptions=False)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is a folder"):
        add(tmp_path, "a", "infer")


def test_of_two_commands_at_once_the_later_is_told_to_repeat(path: Path) -> None:
    other = FileLock(path.with_name(".keys.toml.lock"))
    assert other.take("adds an API key")
    with pytest.raises(ConflictError, match=f"process {os.getpid()}.*repeat"):
        add(path, "a", "infer")
    other.give_back()
    add(path, "a", "infer")


def test_a_server_takes_the_key_for_its_scopes_until_it_is_taken_back(path: Path) -> None:
    def status(route: str, key: str) -> int:
        asked = {"model": "sentiment", "input": "x"}
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{live.url}{route}", json=asked, headers=headers, timeout=60).status_code

    model, now = tiny_llama(), [0.0]
    caller = add(path, "caller", "infer")
    file = KeyFile(path, clock=lambda: now[0])
    access = Access(file.keys, changed=file.changed)
    with live_server(store_of(model, [SENTIMENT]), model, ServerOptions(poll_s=3600), access=access) as live:
        assert status("/v1/classify", caller) == 200
        assert status("/admin/refresh", caller) == 403
        before = path.read_bytes()
        operator = add(path, "operator", "admin")
        assert status("/admin/refresh", operator) == 401  # not looked at again yet
        now[0] += 5
        assert [status(route, operator) for route in ("/admin/refresh", "/v1/classify")] == [200, 403]
        path.write_bytes(path.read_bytes()[len(before) :])
        now[0] += 5
        assert [status("/v1/classify", caller), status("/admin/refresh", operator)] == [401, 200]
        path.write_text("# nobody, until it is known who had the key\n")
        now[0] += 5
        assert [status(route, operator) for route in ("/admin/refresh", "/v1/classify")] == [401, 401]
        another = add(path, "another", "infer")
        now[0] += 5
        assert [status("/v1/classify", another), status("/admin/refresh", operator)] == [200, 401]
