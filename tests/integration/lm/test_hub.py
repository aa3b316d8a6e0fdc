"""`hf:` sources through the hub's own client, against a hub on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"

OPEN = """
import json, sys
from pathlib import Path
from promptstore.lm.source import open_model
try:
    model = open_model(sys.argv[1], cache_dir=Path("/nonexistent"), device="cpu", dtype="float32")
    print(json.dumps(model.fingerprint.to_json()))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


class Hub:
    """One repository, `tiny/llama`, with one commit on branch `main`; `tiny/gated` asks for a token."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                self._answer(with_body=True)

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

            def _answer(self, *, with_body: bool) -> None:
                status, headers, body = hub.respond(self.path.partition("?")[0])
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def respond(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if "tiny/gated" in path:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if "tiny/llama" not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        found = re.search(r"/(?:revision|tree|resolve)/([^/]+)", path)
        if found and found[1] not in {"main", COMMIT}:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path.startswith("/api/models/tiny/llama/tree/"):
            return 200, {"Content-Type": "application/json"}, json.dumps(self._tree()).encode()
        if path.startswith("/api/models/tiny/llama"):
            files = [{"rfilename": entry["path"]} for entry in self._tree()]
            return (
                200,
                {"Content-Type": "application/json"},
                json.dumps({"id": "tiny/llama", "sha": COMMIT, "siblings": files}).encode(),
            )
        body = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}, body

    def _tree(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in sorted(self.folder.iterdir())
        ]


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_llama()


@pytest.fixture(scope="module")
def hub(model: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"an older form of the weights")
    (folder / "consolidated.safetensors").write_bytes(b"another form of the weights")
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()


def opened(source: str, home: Path, url: str, **environment: str) -> dict[str, str]:
    """Opens `source` in a process of its own, because the hub's client reads its settings once, when imported."""
    variables = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", OPEN, source], env=variables, capture_output=True, text=True, check=True, timeout=120
    )
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_repository_opens_with_its_commit_as_revision(hub: Hub, model: FrozenModel, tmp_path: Path) -> None:
    hub.asked.clear()

    answer = opened("hf:tiny/llama@main", tmp_path, hub.url)

    assert answer == {**model.fingerprint.to_json(), "name": "tiny/llama", "revision": COMMIT}
    fetched = {path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert not fetched & {"pytorch_model.bin", "consolidated.safetensors"}, "one form of the weights is enough"


def test_without_network_the_clients_cache_serves(hub: Hub, tmp_path: Path) -> None:
    online = opened("hf:tiny/llama", tmp_path, hub.url)

    offline = opened("hf:tiny/llama", tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    unreachable = opened("hf:tiny/llama", tmp_path, "http://127.0.0.1:9")

    assert offline == unreachable == online


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("hf:tiny/absent", "NotFoundError", "has no hf:tiny/absent, or it is private"),
        ("hf:tiny/llama@v9", "NotFoundError", "has no revision 'v9' of hf:tiny/llama"),
        ("hf:tiny/gated", "NotFoundError", "accept its terms on the hub, then set HF_TOKEN"),
        ("hf:not a name", "InvalidInputError", "write hf:<owner>/<model>"),
    ],
)
def test_what_the_hub_does_not_give_is_said(hub: Hub, tmp_path: Path, source: str, error: str, message: str) -> None:
    answer = opened(source, tmp_path, hub.url)

    assert answer["error"] == error, answer
    assert message in answer["message"]


def test_a_hub_that_does_not_answer_is_said(tmp_path: Path) -> None:
    answer = opened("hf:tiny/llama", tmp_path, "http://127.0.0.1:9")

    assert answer["error"] == "StoreUnavailableError", answer
    assert "the hub cannot be reached" in answer["message"]
