"""What a person at a terminal sees of a flow that fails in the demo: one message, and no traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import JobPlace
from promptstore.testing.terminal import read_to_end

pytestmark = pytest.mark.slow

RUN = """
import json, os, sys
from pathlib import Path
from promptstore.cli.demo.flows import FlowRunner
from promptstore.errors import PromptStoreError
flow, parameters, folder = sys.argv[1:]
try:
    FlowRunner({}, Path(folder), lambda: None).run(flow, "asked", json.loads(parameters))
except PromptStoreError as error:
    print(f"error: {error}", file=sys.stderr)
"""


def seen_on_a_terminal(place: JobPlace, environment: Mapping[str, str], flow: str, **parameters: object) -> str:
    """All that reaches the terminal that standard error is."""
    terminal, stderr = os.openpty()
    arguments = [sys.executable, "-c", RUN, flow, json.dumps(parameters), str(place.folder)]
    with subprocess.Popen(arguments, env={**os.environ, **environment}, stderr=stderr, stdout=subprocess.DEVNULL):
        os.close(stderr)
        return read_to_end(terminal)


def test_a_flow_that_fails_at_work_says_why_once(place: JobPlace, runner: FlowRunner) -> None:
    place.store()
    said = seen_on_a_terminal(place, runner.environment, "promote", ref="nobody:1")
    assert [line for line in said.splitlines() if "nobody" in line] == said.splitlines(), said
    assert said.startswith("error: flow promote failed: task 'nobody' is not in this store")


def test_parameters_that_are_wrong_are_said_once(place: JobPlace, runner: FlowRunner) -> None:
    said = seen_on_a_terminal(place, runner.environment, "promote", ref="sst2:1", aproval="person")
    (line,) = [line for line in said.splitlines() if line]
    assert line.startswith("error: flow promote failed: ")
    assert "aproval: Extra inputs are not permitted" in line
