"""infra/compose.yaml is what compose expects, and keeps the promises of the stack of plain processes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.stack.rig import SERVICES as STACK

INFRA = Path(__file__).parents[3] / "infra"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
VERSION = tomllib.loads((INFRA.parent / "pyproject.toml").read_text())["project"]["version"]
DOCKERFILES = sorted((INFRA / "images").glob("*.Dockerfile"))


def test_the_file_follows_composes_own_schema() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [str(program), "--builtin-schema", "vendor.compose-spec", str(INFRA / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_server_of_the_local_stack_is_there() -> None:
    assert set(STACK) <= set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_named_by_its_version(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert re.fullmatch(r"\d+(\.\d+)+", tag)
    assert tag == VERSION or not image.startswith("promptstore")


@pytest.mark.parametrize("name", SERVICES)
def test_a_port_is_open_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"postgres"}))
def test_a_server_that_would_report_home_is_told_not_to(name: str) -> None:
    told = SERVICES[name].get("environment", {}).get("DO_NOT_TRACK") == "true"
    assert told or "-master.telemetry=false" in SERVICES[name]["command"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_runs_as_nobody_of_importance(file: Path) -> None:
    users = re.findall(r"^USER (\S+)", file.read_text(), flags=re.MULTILINE)
    assert users == ["10001:10001"]
