"""An empty store in memory whose objects can be made to fail."""

import pytest

from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import ScriptedObjects
from promptstore.testing.store_samples import sample_store, ticking_clock


@pytest.fixture
def objects() -> ScriptedObjects:
    return ScriptedObjects(MemoryObjectStore())


@pytest.fixture
def prompts(objects: ScriptedObjects) -> PromptStore:
    return sample_store(objects, clock=ticking_clock())
