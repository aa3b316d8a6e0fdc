from collections.abc import Iterator

import pytest

from infra.stack.rig import StackRig, stack_rig
from promptstore.testing.servers import MissingServerError


@pytest.fixture
def stack() -> Iterator[StackRig]:
    try:
        with stack_rig() as rig:
            yield rig
    except MissingServerError as error:
        pytest.skip(str(error))
