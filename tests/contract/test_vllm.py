"""The gateway's contract in front of the fake vLLM, and of the real one (`make test-vllm`)."""

from collections.abc import Iterator

import pytest

from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.vllm.contract import VllmContract, VllmPlace, input_layer_of
from promptstore.testing.vllm.fake import VllmFake


class TestGatewayInFrontOfTheFake(VllmContract):
    @pytest.fixture(scope="class")
    @classmethod
    def vllm(cls) -> Iterator[VllmPlace]:
        model = tiny_llama()
        fake = VllmFake(model, root=model.fingerprint.name)
        fake.start()
        yield VllmPlace(fake.url, model, input_layer_of(model))
        fake.stop()
