"""The gateway's contract in front of the fake vLLM, and of the real one (`make test-vllm`)."""

from collections.abc import Iterator

import httpx
import pytest

from promptstore.lm.input_layer import load_input_layer
from promptstore.lm.source import find_model, open_model
from promptstore.settings import load_settings
from promptstore.testing.demo_model import DEMO_MODEL
from promptstore.testing.served import LiveServer
from promptstore.testing.servers.process import MissingServerError
from promptstore.testing.servers.vllm import vllm_server
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.vllm.contract import VllmContract, VllmPlace, input_layer_of
from promptstore.testing.vllm.fake import VllmFake

HITS = "vllm:prefix_cache_hits_total"


class TestGatewayInFrontOfTheFake(VllmContract):
    @pytest.fixture(scope="class")
    @classmethod
    def vllm(cls) -> Iterator[VllmPlace]:
        model = tiny_llama()
        fake = VllmFake(model, root=model.fingerprint.name)
        fake.start()
        yield VllmPlace(fake.url, model, input_layer_of(model))
        fake.stop()


@pytest.mark.vllm
@pytest.mark.timeout(1800)
class TestGatewayInFrontOfVllm(VllmContract):
    @pytest.fixture(scope="class")
    @classmethod
    def vllm(cls) -> Iterator[VllmPlace]:
        cache = load_settings().cache_dir
        files = find_model(DEMO_MODEL, cache_dir=cache)
        model = open_model(DEMO_MODEL, cache_dir=cache, device="cpu", dtype="float32")
        try:
            with vllm_server(files.folder, dtype="float32", threads=1) as url:
                yield VllmPlace(url, model, load_input_layer(files, dtype="float32"), tolerance=1e-3)
        except MissingServerError as error:
            pytest.skip(str(error))

    def test_prompts_do_come_out_of_its_prefix_cache(self, vllm: VllmPlace, gateway: LiveServer) -> None:
        """Or nothing here says anything about it."""
        for _ in range(2):
            httpx.post(f"{gateway.url}/v1/classify", json={"model": "sentiment:1", "input": "x"}, timeout=120)
        counted = httpx.get(f"{vllm.url}/metrics").text
        hits = [float(line.rpartition(" ")[2]) for line in counted.splitlines() if line.startswith(HITS)]
        assert sum(hits) > 0
