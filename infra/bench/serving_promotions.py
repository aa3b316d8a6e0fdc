"""Promotions under load: a server, a writer and clients, each a process, that share nothing but a store on disk.

Every answer must be the one of the version that it names, as an engine in this process gives it alone; and no answer
may be of a version that was replaced longer ago than a poll and 200 ms.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import torch

from infra.bench.measurement import Measurement, measured
from infra.bench.serving_load import OK, Asked, Clients, Load, answered, ask, p99, throughput
from infra.bench.serving_process import server_process
from infra.bench.serving_staleness import Look, replaced_for, seen_after
from infra.bench.serving_traffic import COMMAND, LIMITS, SOURCE, TASK, random_prompts, validation_texts
from infra.bench.serving_writer import Orders, Promoted
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import find_model, open_model
from promptstore.objects.local import LocalObjectStore
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.serving.loaded import load_prompt
from promptstore.serving.service import softmax
from promptstore.settings import load_settings
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import EngineRig
from promptstore.testing.served import SENTIMENT, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

POLL_S = 0.1
SEEN_WITHIN_S = POLL_S + 0.2
PROMOTIONS = 10_000
# So many that a version comes round again only long after the bound that answers are held to.
VERSIONS = 256
PER_S = 125.0
TEXTS = ("a great film", "my new phone arrived quickly", "taxes before the election", "good news " * 9)
TOLERANCE = 1e-4
LOOK_EVERY_S = 0.025
CALM_REQUESTS = 2000
NEW_VERSIONS = 30
REPLICA_PROMOTIONS = 300
AHEAD = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A model, and the store in the folder `store` whose only task is `task`, as processes see them."""

    model: FrozenModel
    model_folder: Path
    store: Path
    task: TaskSpec


@dataclass(frozen=True, slots=True)
class Seen:
    """calm: requests before the first promotion. asked: those while the writer promoted. looks: at each replica."""

    calm: Sequence[Asked]
    asked: Sequence[Asked]
    promoted: Sequence[Promoted]
    looks: Sequence[Sequence[Look]]


def promotions(count: int = PROMOTIONS, *, versions: int = VERSIONS, calm: int = CALM_REQUESTS) -> list[Measurement]:
    """Ten thousand, one every 8 ms, on a tiny model, so that switching is measured; clients ask again at once."""
    with tiny_place(versions) as place, _server(place) as url:
        load = Load(url, [{"model": place.task.name, "input": text} for text in TEXTS], clients=2, requests=calm)
        seen = watch([load], Orders(str(place.store), place.task.name, count, PER_S))
        wrong = mislabelled(place, seen.asked, TEXTS)
    name = "serving, promotions from another process"
    pace = len(seen.promoted) / (seen.promoted[-1].done_s - seen.promoted[0].begun_s)
    return [
        measured(f"{name}: made", len(seen.promoted), "promotions", target=f">= {count}", command=COMMAND),
        measured(f"{name}: a second", pace, "promotions/s", command=COMMAND),
        measured(f"{name}: answers a second", throughput(seen.asked), "answers/s", command=COMMAND),
        measured(f"{name}: the same without promotions", throughput(seen.calm), "answers/s", command=COMMAND),
        *_rows(name, seen, wrong),
    ]


def new_versions(model: FrozenModel, count: int = NEW_VERSIONS) -> list[Measurement]:
    """New versions for the demo's model, one a second, each published some seconds before; clients at half load."""
    texts = validation_texts(2)
    with demo_place(model) as place, _server(place) as url:
        bodies = [{"model": place.task.name, "input": text} for text in texts]
        capacity = throughput(ask(Load(url, bodies, clients=2 * LIMITS.rows, requests=8 * LIMITS.rows)))
        load = Load(url, bodies, per_s=capacity / 2, requests=max(2, round(5 * capacity)))
        seen = watch([load], Orders(str(place.store), place.task.name, count, per_s=1.0, ahead=AHEAD))
        wrong = mislabelled(place, seen.asked, texts)
    name = "serving, SmolLM2 at half load, a new version a second"
    return [measured(f"{name}: made", len(seen.promoted), "promotions", command=COMMAND), *_rows(name, seen, wrong)]


def replicas(count: int = REPLICA_PROMOTIONS, *, versions: int = VERSIONS) -> list[Measurement]:
    """Two servers of a tiny model, ten promotions a second, and clients of each that ask at set times."""
    with tiny_place(versions) as place, _server(place) as one, _server(place) as other:
        bodies = [{"model": place.task.name, "input": text} for text in TEXTS]
        loads = [Load(url, bodies, per_s=20.0, requests=200) for url in (one, other)]
        seen = watch(loads, Orders(str(place.store), place.task.name, count, per_s=10.0))
        wrong = mislabelled(place, seen.asked, TEXTS)
    name = "serving, two replicas, promotions from another process"
    return [measured(f"{name}: made", len(seen.promoted), "promotions", command=COMMAND), *_rows(name, seen, wrong)]


def watch(loads: Sequence[Load], orders: Orders) -> Seen:
    """Asks for a while in peace, then for as long as a writer promotes and a replica has not followed to its end.

    loads: one for each replica.
    """
    calm = [each for load in loads for each in ask(load)]
    clients = [Clients(replace(load, requests=None)) for load in loads]
    try:
        with ThreadPoolExecutor(1 + len(loads)) as pool:
            writing = pool.submit(_write, orders)
            looking = [pool.submit(lambda url: list(_look(url, writing)), load.url) for load in loads]
            looks = [each.result() for each in looking]
    finally:
        asked = [each for some in clients for each in some.end()]
    return Seen(calm, asked, writing.result(), looks)


def mislabelled(place: Place, asked: Sequence[Asked], texts: Sequence[str]) -> int:
    """Answers that are not those of the version they name, computed alone and from input embeddings in this process."""
    objects = LocalObjectStore(place.store)
    store = PromptStore(Ledger.open(objects, actor="bench"), objects)
    named = {each.version for each in asked if each.version}
    expected = {version: own_answers(place.model, store, version, texts) for version in named}

    def is_right(each: Asked) -> bool:
        own = expected.get(each.version)
        return own is not None and all(
            abs(each.probabilities[label] - value) <= TOLERANCE for label, value in own[each.body].items()
        )

    return sum(not is_right(each) for each in answered(asked))


@contextmanager
def tiny_place(versions: int) -> Iterator[Place]:
    """A tiny model and prompts for it. Its matrices are too small for more threads than one."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-promotions-") as name:
        folder = Path(name)
        tiny = tiny_llama()
        tiny.network.save_pretrained(folder / "model")
        tiny.tokenizer.save_pretrained(folder / "model")
        model = open_model(str(folder / "model"), cache_dir=folder / "cache", device="cpu", dtype="float32")
        store = new_store(LocalObjectStore(folder / "store"))
        for seed in range(versions):
            publish_random(store, model, SENTIMENT, seed=seed, alias=None if seed else "production")
        yield Place(model, folder / "model", folder / "store", SENTIMENT)


@contextmanager
def demo_place(model: FrozenModel, num_virtual_tokens: int = 20) -> Iterator[Place]:
    """The demo's model and one prompt for it, in production."""
    with tempfile.TemporaryDirectory(prefix="bench-promotions-") as name:
        store = new_store(LocalObjectStore(Path(name)))
        (prompt,) = random_prompts(model, 1, num_virtual_tokens)
        store.publish(prompt, TASK, alias="production", force=True, reason="benchmark")
        files = find_model(SOURCE, cache_dir=load_settings().cache_dir)
        yield Place(model, files.folder, Path(name), TASK)


def _rows(name: str, seen: Seen, wrong: int) -> list[Measurement]:
    bound = f"< {SEEN_WITHIN_S:.3g}"
    failed = sum(each.status != OK for each in seen.asked)
    good = answered(seen.asked)
    # By the last of the replicas.
    seen_by_all = list(map(max, zip(*(seen_after(seen.promoted, looks) for looks in seen.looks), strict=True)))
    rows: Sequence[tuple[str, float, str, str]] = (
        ("answers meanwhile", len(good), "answers", ""),
        ("failed requests", failed, "requests", "== 0"),
        ("mislabelled answers", wrong, "answers", "== 0"),
        (f"seen after, p99 (poll interval {POLL_S} s)", p99(seen_by_all), "s", bound),
        (
            "an answer's version replaced before it was asked, p99",
            p99(replaced_for([each for each in good if each.version], seen.promoted)),
            "s",
            bound,
        ),
        ("latency of answers, p99", p99([each.latency_s for each in good]), "s", ""),
        ("latency without promotions, p99", p99([each.latency_s for each in answered(seen.calm)]), "s", ""),
    )
    return [
        measured(f"{name}: {what}", value, unit, target=target, command=COMMAND) for what, value, unit, target in rows
    ]


@contextmanager
def _server(place: Place) -> Iterator[str]:
    with server_process(place.store, place.model_folder, "--poll", str(POLL_S), "--max-batch", str(LIMITS.rows)) as url:
        yield url


def _write(orders: Orders) -> list[Promoted]:
    command = [sys.executable, "-m", "infra.bench.serving_writer"]
    done = subprocess.run(command, input=json.dumps(asdict(orders)), check=True, stdout=subprocess.PIPE, text=True)
    return [Promoted(*each) for each in json.loads(done.stdout)]


def _look(url: str, writing: "Future[list[Promoted]]", *, patience_s: float = 30.0) -> Iterator[Look]:
    """The commit that the replica serves, again and again until it is the writer's last."""
    deadline_s = None
    with httpx.Client(base_url=url, timeout=30) as http:
        while True:
            commit = int(http.get("/readyz").raise_for_status().json()["store"]["commit"])
            yield Look(time.monotonic(), commit)
            if writing.done():
                deadline_s = deadline_s or time.monotonic() + patience_s
                if commit >= writing.result()[-1].commit or time.monotonic() > deadline_s:
                    return
            time.sleep(LOOK_EVERY_S)


def own_answers(model: FrozenModel, store: PromptStore, version: str, texts: Sequence[str]) -> list[dict[str, float]]:
    """A version's probabilities by label for each text."""
    loaded = load_prompt(store.pull(version, for_model=model.fingerprint), model)
    rig = EngineRig(model, RecomputedDecoding(model), {version: loaded.prompt})
    answers = []
    for text in texts:
        ids = loaded.encoder.encode(loaded.row(text))
        logits = rig.answer(rig.score(version, ids, loaded.label_token_ids)).logits or ()
        answers.append(dict(zip(loaded.task.label_names, softmax(logits), strict=True)))
    return answers
