import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from promptstore.errors import InvalidInputError, OverloadedError
from promptstore.lm.frozen import FrozenModel
from promptstore.serving.access import Access
from promptstore.serving.api_keys import ApiKey, KeyFile, digest_key, new_key, read_keys
from promptstore.serving.app import create_app
from promptstore.serving.failures import RequestRefusedError
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.options import ServerOptions
from promptstore.serving.service import Service
from promptstore.testing.described import Described
from promptstore.testing.served import LiveServer, live_server, store_of

INFER = ApiKey("infer", digest_key("infer-key"), frozenset({"infer"}))
ADMIN = ApiKey("admin", digest_key("admin-key"), frozenset({"infer", "admin"}))


BUSY = ApiKey("busy", digest_key("busy-key"), frozenset({"infer"}), requests_per_minute=5)
# What says nothing of the store: whether the process is well, and files that are the same for everybody.
OPEN = {"/healthz", "/readyz", "/", "/console", "/console/{name:path}"}


@pytest.fixture(scope="module")
def live(model: FrozenModel) -> Iterator[LiveServer]:
    with live_server(store_of(model), model, keys=[INFER, ADMIN, BUSY]) as found:
        yield found


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url) as found:
        yield found


def _status(client: httpx.Client, method: str, path: str, key: str | None) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body: Any = {"model": "sentiment", "input": "x"} if method == "POST" else None
    if path == "/v1/chat/completions":
        body = {"model": "sentiment", "messages": [{"role": "user", "content": "x"}]}
    elif path == "/v1/completions":
        body = {"model": "sentiment", "prompt": "x"}
    return client.request(method, path, json=body, headers=headers).status_code


@pytest.mark.parametrize(
    ("method", "path", "without", "infer", "admin"),
    [
        ("POST", "/v1/classify", 401, 200, 200),
        ("POST", "/v1/completions", 401, 200, 200),
        ("POST", "/v1/chat/completions", 401, 200, 200),
        ("GET", "/openapi.json", 401, 200, 200),
        ("GET", "/v1/models", 401, 200, 200),
        ("GET", "/v1/models/sentiment", 401, 200, 200),
        ("GET", "/console/state", 401, 200, 200),
        ("GET", "/metrics", 401, 403, 200),
        ("POST", "/admin/refresh", 401, 403, 200),
        ("GET", "/healthz", 200, 200, 200),
        ("GET", "/readyz", 200, 200, 200),
        ("GET", "/console/", 200, 200, 200),
    ],
)
def test_every_route_asks_for_its_scope(
    client: httpx.Client, method: str, path: str, without: int, infer: int, admin: int
) -> None:
    found = [_status(client, method, path, key) for key in (None, "infer-key", "admin-key")]
    assert found == [without, infer, admin]
    assert _status(client, method, path, "unknown") == without


def test_a_full_queue_is_no_matter_of_strangers(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Service) -> None:
        raise OverloadedError("full")

    monkeypatch.setattr(Service, "require_room", refuse)
    assert _status(client, "POST", "/v1/classify", None) == 401
    assert _status(client, "POST", "/v1/classify", "infer-key") == 429


def test_nothing_but_what_is_listed_here_is_open_to_strangers(live: LiveServer, client: httpx.Client) -> None:
    app = create_app(replace(live.context, metrics=ServerMetrics()))
    asked = set()
    for route in iter_route_contexts(app.routes):
        for method in route.methods or ():
            status = _status(client, method, str(route.path).replace("{ref:path}", "sentiment"), None)
            assert (status == 401) == (route.path not in OPEN), route.path
            asked.add(route.path)
    assert asked > OPEN


def test_strangers_learn_whether_a_server_is_ready_and_nothing_of_its_store(client: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer unknown"}):
        assert client.get("/readyz", headers=headers).json() == {"status": "ready"}
    told = client.get("/readyz", headers={"authorization": "Bearer infer-key"}).json()
    assert {"store", "refused", "trials"} <= set(told)


def test_a_bound_holds_for_requests_that_come_at_once(live: LiveServer, client: httpx.Client) -> None:
    class Slow(OrderedDict[str, tuple[float, float]]):
        """Whoever looks at a bucket while another does finds it as it was."""

        def pop(self, *found: Any) -> Any:
            bucket = super().pop(*found)
            time.sleep(0.02)
            return bucket

    live.context.access._buckets = Slow()
    with ThreadPoolExecutor(16) as pool:
        asked = list(pool.map(lambda _: _status(client, "GET", "/v1/models", "busy-key"), range(32)))
    assert (asked.count(200), asked.count(429)) == (5, 27)


def test_a_refusal_says_how_to_authenticate_and_does_no_work(client: httpx.Client) -> None:
    answer = client.post("/v1/classify", content=b"{", headers={"authorization": "Basic abc"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


def test_what_callers_are_refused_for_their_key_is_as_described(client: httpx.Client) -> None:
    def ask(path: str, key: str) -> httpx.Response:
        return client.get(path, headers={"authorization": f"Bearer {key}"})

    described = Described(ask("/openapi.json", "infer-key").json())
    refused = [ask("/v1/models", "unknown"), ask("/metrics", "infer-key")]
    refused += [answer for _ in range(6) if (answer := ask("/v1/models", "busy-key")).status_code != 200]
    assert {answer.status_code for answer in refused} == {401, 403, 429}
    for answer in refused:
        described.check(answer)


def test_without_keys_everybody_may_ask() -> None:
    assert Access().admit(None, "10.0.0.1", "admin").name == "anonymous"


@pytest.mark.parametrize("shown", ["Bearer", "Bearer ", "bearer  ", ""])
def test_who_shows_nothing_is_nobody_whatever_keys_there_are(shown: str) -> None:
    assert not Access([ApiKey("nothing", digest_key(""), frozenset({"infer"}))]).knows(shown)


def test_a_key_has_a_bucket_of_its_own_that_refills() -> None:
    now = [0.0]
    key = ApiKey("slow", digest_key("slow"), frozenset({"infer"}), requests_per_minute=6)
    access = Access([key, INFER], clock=lambda: now[0])

    def admitted(given: str) -> bool:
        try:
            access.admit(f"Bearer {given}", "10.0.0.1", "infer")
        except RequestRefusedError as refused:
            return refused.status != 429
        return True

    assert [admitted("slow") for _ in range(8)] == [True] * 6 + [False] * 2
    assert all(admitted("infer-key") for _ in range(20))
    now[0] = 10.0
    assert [admitted("slow"), admitted("slow")] == [True, False]
    now[0] = -5.0
    assert admitted("slow") is False


def test_a_list_without_keys_lets_nobody_in() -> None:
    access = Access([])
    assert access.asks_for_keys
    with pytest.raises(RequestRefusedError, match="a key known here"):
        access.admit(None, "127.0.0.1", "infer")


def test_strangers_are_bounded_by_address() -> None:
    access = Access(anonymous_per_minute=2, clock=lambda: 0.0)
    for _ in range(2):
        access.admit(None, "10.0.0.1", "infer")
    with pytest.raises(RequestRefusedError):
        access.admit(None, "10.0.0.1", "infer")
    access.admit(None, "10.0.0.2", "infer")


def test_keys_are_read_from_a_file_that_holds_only_digests(tmp_path: Path) -> None:
    key = new_key()
    path = tmp_path / "keys.toml"
    path.write_text(f'[[key]]\nname = "a"\nsha256 = "{digest_key(key)}"\nscopes = ["infer"]\nrequests_per_minute = 5\n')
    (found,) = read_keys(path)
    assert found == ApiKey("a", digest_key(key), frozenset({"infer"}), 5)
    assert Access([found]).admit(f"Bearer {key}", "", "infer") is found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\n', r"\[\[key\]\] tables alone"),
        ('key = "secret"\n', r"\[\[key\]\] tables alone"),
        ("[[key]\n", "keys.toml"),
        ('[[key]]\nname = "a"\n', "key 1"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["all"]\n', "scopes"),
        ('[[key]]\nname = "a"\nsha256 = "secret"\nscopes = ["infer"]\n', "SHA-256"),
        (f'[[key]]\nname = "a"\nsha256 = "{digest_key("")}"\nscopes = ["infer"]\n', "no key at all"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\nrequests_per_minute = 0\n', "from 1"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\nrate = 1\n', "key 1"),
    ],
)
def test_a_key_file_that_is_wrong_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=says):
        read_keys(path)


def test_a_key_is_taken_back_and_another_given_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = tmp_path / "keys.toml", [0.0]

    def write(*names: str) -> None:
        tables = [f'[[key]]\nname = "{each}"\nsha256 = "{digest_key(each)}"\nscopes = ["infer"]\n' for each in names]
        path.write_text("".join(tables))

    def may_ask() -> list[str]:
        return [each for each in ("old", "new") if access.knows(f"Bearer {each}")]

    write("old")
    file = KeyFile(path, clock=lambda: now[0])
    access = Access(file.keys, changed=file.changed)
    assert may_ask() == ["old"]
    write("new", "newer")
    assert may_ask() == ["old"]  # not looked at again yet
    now[0] += 5
    assert may_ask() == ["new"]
    for damage in (lambda: path.write_text("[[key"), lambda: path.write_bytes(b"\xff"), path.unlink):
        damage()
        now[0] += 5
        assert may_ask() == ["new"]
        assert "API keys stay as they were" in caplog.messages[-1]
    write("old")
    now[0] += 5
    assert may_ask() == ["old"]


@pytest.mark.parametrize("rest", ["", "\n", "# nobody\n", "key = []\n"])
def test_the_last_key_is_taken_back_without_a_restart_and_nobody_is_let_in(
    tmp_path: Path, rest: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = tmp_path / "keys.toml", [0.0]
    table = f'[[key]]\nname = "only"\nsha256 = "{digest_key("only")}"\nscopes = ["infer"]\n'
    path.write_text(table)
    file = KeyFile(path, clock=lambda: now[0])
    access = Access(file.keys, changed=file.changed)
    assert access.knows("Bearer only")
    path.write_text(rest)
    now[0] += 5
    assert access.asks_for_keys
    for shown in ("Bearer only", "Bearer ", None):
        assert not access.knows(shown)
        with pytest.raises(RequestRefusedError) as refused:
            access.admit(shown, "127.0.0.1", "infer")
        assert refused.value.status == 401
    assert caplog.messages == [f"key file {path} holds no key: nobody may ask until it does"]
    path.write_text(table)
    now[0] += 5
    assert access.knows("Bearer only")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "server.example"])
def test_strangers_are_not_let_in_by_accident(host: str) -> None:
    with pytest.raises(InvalidInputError, match="--api-keys"):
        ServerOptions(host=host).check(has_keys=False)
    ServerOptions(host=host).check(has_keys=True)
    ServerOptions(host=host, allow_anonymous=True).check(has_keys=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    ServerOptions(host=host).check(has_keys=False)
