"""infra/kubernetes as a cluster would read it, and as the programs in it do."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from flows.__main__ import _parser as flows_parser
from promptstore.cli.app import app
from promptstore.serving.options import ServerOptions
from promptstore.serving.routes_state import router
from promptstore.settings import Settings

ROOT = Path(__file__).parents[3] / "infra"
MANIFESTS = ROOT / "kubernetes"
VERSIONS = ("1.30", "1.37")
OF_OPERATORS = {"ServiceMonitor"}
WHOLE = sorted(
    file
    for file in MANIFESTS.rglob("*.yaml")
    if file.name not in {"kustomization.yaml", "resources.yaml", "service-monitor.yaml"}
)
KUBECTL = shutil.which("kubectl")
PATHS = {getattr(route, "path", "") for route in router.routes}
Resource = dict[str, Any]


def read(file: Path) -> list[Resource]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


@pytest.fixture(scope="module", params=("cpu", "gpu"))
def rendered(request: pytest.FixtureRequest) -> dict[tuple[str, str], Resource]:
    """Everything of an overlay, by kind and name."""
    if KUBECTL is None:
        pytest.skip("needs kubectl")
    folder = MANIFESTS / "overlays" / request.param
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def pods(rendered: dict[tuple[str, str], Resource]) -> Iterator[tuple[str, Resource]]:
    for (kind, name), resource in rendered.items():
        if kind in {"Deployment", "StatefulSet"}:
            yield name, resource["spec"]["template"]["spec"]


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: str(file.relative_to(MANIFESTS)))
def test_a_manifest_is_what_kubernetes_expects(file: Path) -> None:
    for resource in read(file):
        kubernetes_validate.validate(resource, VERSIONS[0], strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_rendered_overlay_is_what_kubernetes_expects(rendered: dict[tuple[str, str], Resource], version: str) -> None:
    checked = [each for each in rendered.values() if each["kind"] not in OF_OPERATORS]
    for resource in checked:
        kubernetes_validate.validate(resource, version, strict=True)
    assert len(checked) >= 11


def test_a_misspelt_field_would_be_seen() -> None:
    (service,) = [each for each in read(MANIFESTS / "base" / "serving.yaml") if each["kind"] == "Service"]
    service["spec"]["selectors"] = service["spec"].pop("selector")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[0], strict=True)


def test_a_pod_is_locked_down(rendered: dict[tuple[str, str], Resource]) -> None:
    (user,) = {
        re.findall(r"^USER (\d+):", file.read_text(), flags=re.MULTILINE)[0]
        for file in (ROOT / "images").glob("*.Dockerfile")
    }
    for name, pod in pods(rendered):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == int(user), name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_only_the_gpu_overlay_asks_for_gpus_and_every_pod_of_it_does(
    rendered: dict[tuple[str, str], Resource],
) -> None:
    for name, pod in pods(rendered):
        (container,) = pod["containers"]
        device = {each["name"]: each["value"] for each in container["env"]}["PROMPTSTORE_DEVICE"]
        assert (container["resources"]["limits"].get("nvidia.com/gpu") == 1) == (device == "cuda"), name
        assert container["image"].endswith(f"-{'gpu' if device == 'cuda' else 'cpu'}")


def test_every_setting_exists_and_no_secret_is_written_down(rendered: dict[tuple[str, str], Resource]) -> None:
    settings = {each["metadata"]["name"]: each["data"] for each in rendered.values() if each["kind"] == "ConfigMap"}
    assert "Secret" not in {kind for kind, _ in rendered}
    known = {f"PROMPTSTORE_{name.upper()}" for name in Settings.model_fields}
    for name, pod in pods(rendered):
        (container,) = pod["containers"]
        given = {each["name"]: each["value"] for each in container["env"]}
        for source in container["envFrom"]:
            given |= settings.get(source.get("configMapRef", {}).get("name"), {})
        ours = {variable for variable in given if variable.startswith("PROMPTSTORE_")}
        assert {"PROMPTSTORE_STORE", "PROMPTSTORE_MODEL"} <= ours, name
        assert ours <= known, name
        assert not any(re.search(r"SECRET|PASSWORD|TOKEN|API_KEY", variable) for variable in given), name
        Settings(**{variable.removeprefix("PROMPTSTORE_").lower(): given[variable] for variable in ours})


def test_the_server_is_started_with_flags_that_it_has_and_asked_where_it_answers(
    rendered: dict[tuple[str, str], Resource],
) -> None:
    pod = dict(pods(rendered))["promptstore-serving"]
    (container,) = pod["containers"]
    program, command, *flags = container["args"]
    assert program == "promptstore"
    tree: Any = typer.main.get_command(app)
    given = tree.commands[command].make_context(command, list(flags), resilient_parsing=True).params
    (port,) = container["ports"]
    assert port["containerPort"] == given["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["path"] in PATHS, asked["port"]) == (True, port["name"])
    (service_port,) = rendered["Service", "promptstore-serving"]["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]
    folder = Path(given["api_keys"]).parent
    assert str(folder) in {each["mountPath"] for each in container["volumeMounts"]}
    drain_s = given["drain_delay_s"] + 2 * ServerOptions().drain_s  # requests under way, then the engine
    assert drain_s < pod["terminationGracePeriodSeconds"]
    assert given["drain_delay_s"] > container["readinessProbe"]["periodSeconds"] * 2


def test_the_worker_is_started_with_flags_that_it_has(rendered: dict[tuple[str, str], Resource]) -> None:
    (container,) = dict(pods(rendered))["promptstore-worker"]["containers"]
    assert container["args"][:3] == ["python", "-m", "flows"]
    given = flows_parser().parse_args(container["args"][3:])
    (port,) = container["ports"]
    assert port["containerPort"] == given.health_port


def test_what_programs_write_lies_on_volumes(rendered: dict[tuple[str, str], Resource]) -> None:
    image = (ROOT / "images" / "serving.Dockerfile").read_text()
    folders = re.findall(r"PROMPTSTORE_(?:CACHE|STATE)_DIR=(\S+)", image)
    assert len(folders) == 2
    for name, pod in pods(rendered):
        (container,) = pod["containers"]
        assert {*folders, "/tmp"} <= {each["mountPath"] for each in container["volumeMounts"]}, name


def test_selectors_find_what_they_are_for(rendered: dict[tuple[str, str], Resource]) -> None:
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"]
        for (kind, name), each in rendered.items()
        if kind in {"Deployment", "StatefulSet"}
    }
    for (kind, name), resource in rendered.items():
        selector = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"].get("matchLabels", {}),
        }.get(kind)
        if selector is not None and (wanted := selector(resource["spec"])):
            assert wanted.items() <= labels[name].items(), name
    target = rendered["HorizontalPodAutoscaler", "promptstore-serving"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in rendered
    assert "replicas" not in rendered["Deployment", "promptstore-serving"]["spec"]


def test_prometheus_finds_the_servers_port_and_path() -> None:
    (monitor,) = read(MANIFESTS / "components" / "monitoring" / "service-monitor.yaml")
    (service,) = [each for each in read(MANIFESTS / "base" / "serving.yaml") if each["kind"] == "Service"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {each["name"] for each in service["spec"]["ports"]}
    assert endpoint["path"] in PATHS
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
