"""The shipped job templates, held against those that Prefect ships for each type of pool."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.utilities.templating import apply_values

from flows.pools import read_template
from promptstore.errors import InvalidInputError

POOLS = Path(__file__).parents[3] / "infra" / "pools"
SHIPPED = files("prefect.server.api") / "collections_data" / "views" / "aggregate-worker-metadata.json"
TYPES = ("docker", "kubernetes")
KUBERNETES = "1.30"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("S3_ENDPOINT", "S3_REGION", "MODEL"):
        monkeypatch.delenv(f"PROMPTSTORE_{name}", raising=False)
    monkeypatch.setenv("PROMPTSTORE_STORE", "s3://prompts/store")
    monkeypatch.setenv("PROMPTSTORE_TASKS", "/srv/tasks")


def prefects(kind: str) -> dict[str, Any]:
    """Prefect's own template for a type, in the version that is installed."""
    found: dict[str, Any] = json.loads(SHIPPED.read_text())[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    return found


def job(kind: str, **given: Any) -> dict[str, Any]:
    """What a worker makes of the template for one run."""
    template = read_template(POOLS / f"{kind}.yaml")
    properties = template["variables"]["properties"]
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    filled: dict[str, Any] = apply_values(
        template["job_configuration"], {**defaults, "name": "run", "command": "start", "labels": {}, **given}
    )
    return filled


def read_all(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((POOLS.with_name("kubernetes") / "base" / file).read_text()))


def pod(**given: Any) -> dict[str, Any]:
    found: dict[str, Any] = job("kubernetes", **given)["job_manifest"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_a_template_says_nothing_that_the_worker_of_its_type_does_not_know(kind: str) -> None:
    own, theirs = read_template(POOLS / f"{kind}.yaml"), prefects(kind)
    # The Docker worker's model has one field more than its default template shows.
    known = {*theirs["job_configuration"], *({"container_create_kwargs"} if kind == "docker" else ())}
    assert set(own["job_configuration"]) <= known
    Draft202012Validator.check_schema(own["variables"])
    for name, each in own["variables"]["properties"].items():
        if (same := theirs["variables"]["properties"].get(name)) and "type" in same:
            assert each["type"] == same["type"], name
        if "default" in each:
            Draft202012Validator(each).validate(each["default"])


def test_a_run_is_a_job_that_kubernetes_takes_and_its_network_policy_knows() -> None:
    manifest = job("kubernetes", namespace="prompts")["job_manifest"]
    # The worker makes lists of these, as Kubernetes wants them.
    manifest["spec"]["template"]["spec"]["containers"][0] |= {"args": ["start"], "env": []}
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    policies = {each["metadata"]["name"]: each["spec"]["podSelector"] for each in read_all("network.yaml")}
    (selector,) = policies["promptstore-worker"]["matchExpressions"]
    assert manifest["spec"]["template"]["metadata"]["labels"][selector["key"]] in selector["values"]


def test_a_pod_gets_the_gpus_it_asks_for() -> None:
    container = pod()["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod(gpus=0)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 0
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert {"name": "state", "emptyDir": {}} in pod()["volumes"]


def test_a_containers_gpus_are_left_out_on_request_and_its_locks_are_shared() -> None:
    shared = job("docker")
    assert "promptstore-state:/var/lib/promptstore" in shared["volumes"]
    assert "/srv/tasks:/srv/tasks:ro" in shared["volumes"]
    (devices,) = shared["container_create_kwargs"]["device_requests"]
    assert (devices["count"], devices["capabilities"]) == (-1, [["gpu"]])
    assert job("docker", device_requests=[])["container_create_kwargs"]["device_requests"] == []


def test_settings_come_from_the_environment_and_unset_ones_are_left_out() -> None:
    environment = read_template(POOLS / "docker.yaml")["variables"]["properties"]["env"]["default"]
    assert environment["PROMPTSTORE_STORE"] == "s3://prompts/store"
    assert "PROMPTSTORE_S3_ENDPOINT" not in environment


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no "),
        ("{", "is not YAML"),
        ("[]", "expected job_configuration and variables"),
        ("job_configuration: {image: '{{ imag }}'}\nvariables: {}", "{{ imag }} is used but not declared"),
    ],
)
def test_a_mistake_in_a_template_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "pool.yaml").write_text(content)
    with pytest.raises(InvalidInputError) as refused:
        read_template(tmp_path / "pool.yaml")
    assert said in str(refused.value)
