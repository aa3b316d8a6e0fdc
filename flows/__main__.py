"""Run a flow in this process, against the Prefect server that PREFECT_API_URL names.

    python -m flows tune --parameters FILE.json [--result FILE.json] [--reason FILE] [--wait SECONDS]
    python -m flows server --home FOLDER --port PORT
    python -m flows deploy [--file infra/prefect.yaml] [--tasks FOLDER] [--pool NAME] [--pool-type process]
    python -m flows worker [--pool NAME] [--pool-type process] [--health-port PORT]
    python -m flows announce [--once]

Exit code 0 if it did what was asked, 1 if not (the last line on standard error says why, or the file that --reason
names), 2 for a usage error.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import httpx
from pydantic import BaseModel, ValidationError

from flows.environment import QUIET_FLOWS, server_environment
from promptstore.collector import spare_start_and_end
from promptstore.errors import InvalidInputError, PromptStoreError, StoreUnavailableError, next_step
from promptstore.store.files import write_atomically

# Each flow's module and parameters. Imported when asked for: Prefect and torch take seconds.
FLOWS: Mapping[str, tuple[str, str]] = {
    "tune": ("flows.tune", "TuneParameters"),
    "promote": ("flows.promote", "PromoteParameters"),
    "retrain": ("flows.retrain", "RetrainParameters"),
    "maintain": ("flows.maintain", "MaintainParameters"),
    "mirror": ("flows.mirror", "MirrorParameters"),
    "score": ("flows.score", "ScoreParameters"),
    "upgrade_base": ("flows.upgrade_base", "UpgradeBaseParameters"),
}
PREFECT_WAIT_S = 7.0


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.command == "server":
        start_server(given.home, given.port)
    for variable, value in QUIET_FLOWS.items():
        os.environ.setdefault(variable, value)
    try:
        if given.command == "worker":
            start_worker(given.pool, given.pool_type, given.health_port)
        elif given.command == "deploy":
            apply_deployments(given)
        elif given.command == "announce":
            announce_log(follows=not given.once)
        else:
            run_flow(given.command, given.parameters, given.result, wait_s=given.wait)
    except KeyboardInterrupt:
        return _say("interrupted; run it again under the same job name to go on", 130, getattr(given, "reason", None))
    except Exception as error:  # noqa: BLE001 - the boundary of the program
        return _say(_one_line(error), 1, getattr(given, "reason", None))
    return 0


def run_flow(name: str, parameters_file: Path, result_file: Path | None, *, wait_s: float = PREFECT_WAIT_S) -> None:
    """Run one flow to its end; its result, failures of single tasks included, goes to `result_file` as JSON.

    wait_s: for a Prefect server that is still starting.

    Raises:
        PromptStoreError: what stopped it, or what failed for single tasks while the others went on.
    """
    parameters = _parameters(name, parameters_file)
    require_prefect(wait_s)
    flow: Callable[[BaseModel], Any] = getattr(import_module(FLOWS[name][0]), name)
    result = flow(parameters)
    if result_file is not None:
        write_atomically(result_file, json.dumps(_plain(result), indent=2, default=str).encode() + b"\n")
    if failures := getattr(result, "failures", ()):
        raise PromptStoreError("; ".join(failures))


def require_prefect(wait_s: float = PREFECT_WAIT_S) -> None:
    """Find out before anything is begun, and in one line, whether the Prefect server answers within `wait_s`.

    Raises:
        StoreUnavailableError: it does not; nothing was begun.
    """
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise InvalidInputError("PREFECT_API_URL is not set; `python -m flows server` starts a Prefect server")
    deadline = time.monotonic() + wait_s
    with httpx.Client(timeout=10) as client:
        while True:
            try:
                client.get(f"{url}/health").raise_for_status()
                return
            except httpx.HTTPError as error:
                if time.monotonic() >= deadline:
                    said = f"Prefect does not answer at {url} ({error}); `python -m flows server` starts one"
                    raise StoreUnavailableError(said) from error
                time.sleep(0.5)


def start_server(home: Path, port: int) -> NoReturn:
    """Become a Prefect server for this machine alone, quiet and private; it keeps everything in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    arguments = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    os.execve(sys.executable, arguments, {**os.environ, **server_environment(home, port)})  # noqa: S606 - no shell wanted


def start_worker(pool: str, pool_type: str, health_port: int | None) -> NoReturn:
    """Become a worker that carries out what is scheduled for `pool`, which is made if it does not exist.

    health_port: where `/health` tells whoever asks whether it still polls; `None` opens no port.

    Raises:
        InvalidInputError: the pool is of another type, or the package with that type's worker is not installed.
    """
    from flows.pools import ensure_pool, require_worker

    require_worker(pool_type)
    require_prefect()
    ensure_pool(pool, pool_type)
    arguments = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", pool_type]
    if health_port is not None:
        os.environ |= {"PREFECT_WORKER_WEBSERVER_HOST": "0.0.0.0", "PREFECT_WORKER_WEBSERVER_PORT": str(health_port)}  # noqa: S104 - a container's probe comes from outside
        arguments.append("--with-healthcheck")
    # Told to end, Prefect's worker interrupts itself, which a shell's background jobs are born deaf to.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.executable, arguments)  # noqa: S606 - no shell wanted


def apply_deployments(given: argparse.Namespace) -> None:
    """Pool and deployments, and automations if somebody is to be told."""
    from flows.automations import apply_automations
    from flows.deploy import deploy
    from flows.pools import has_worker

    require_prefect()
    # Prefect fills {{ $NAME }} in the files from the environment of its process.
    os.environ |= {
        "PROMPTSTORE_WORK_POOL": given.pool,
        "PROMPTSTORE_TASKS": str(given.tasks.resolve()),
        "PROMPTSTORE_PROMOTE_ON_PUBLISH": str(given.promote_on_publish),
    }
    beside: Path = given.file.parent / "pools" / f"{given.pool_type}.yaml"
    template = given.pool_template or (beside if beside.is_file() else None)
    for name in deploy(given.file, pool=given.pool, pool_type=given.pool_type, template=template):
        sys.stdout.write(json.dumps({"deployment": name}) + "\n" if given.json else f"{name}\n")
    if given.notify is not None:
        for name in apply_automations(given.automations or given.file.parent / "automations.yaml", given.notify):
            sys.stdout.write(json.dumps({"automation": name}) + "\n" if given.json else f"automation {name}\n")
    if not has_worker(given.pool):
        start = f"python -m flows worker --pool {given.pool} --pool-type {given.pool_type}"
        sys.stderr.write(f"no worker of pool {given.pool} is at work, so nothing will run; start one: {start}\n")


def announce_log(*, follows: bool) -> None:
    from flows.announce import announce

    require_prefect()
    told = announce(follows=follows)
    sys.stderr.write(f"{told} event(s) told\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Run a flow in this process.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in FLOWS:
        command = commands.add_parser(name)
        command.add_argument("--parameters", type=Path, required=True, metavar="FILE", help="JSON object")
        command.add_argument("--result", type=Path, metavar="FILE", help="where the result goes, as JSON")
        command.add_argument("--reason", type=Path, metavar="FILE", help="where it goes why the flow failed")
        wait = "for a Prefect server that is still starting (%(default)g)"
        command.add_argument("--wait", type=float, default=PREFECT_WAIT_S, metavar="SECONDS", help=wait)
    server = commands.add_parser("server", help="a Prefect server for this machine alone")
    server.add_argument("--home", type=Path, required=True, metavar="FOLDER")
    server.add_argument("--port", type=int, default=4200)
    deploy = commands.add_parser("deploy", help="apply the deployments of a prefect.yaml")
    deploy.add_argument("--file", type=Path, default=Path("infra/prefect.yaml"))
    deploy.add_argument("--tasks", type=Path, default=Path("tasks"), metavar="FOLDER", help="with the task files")
    deploy.add_argument("--json", action="store_true", help="print JSON, one value a line")
    deploy.add_argument("--pool-template", type=Path, metavar="FILE", help="of its jobs; pools/TYPE.yaml by --file")
    deploy.add_argument("--notify", metavar="BLOCK|URL", help="tell it of failures and of approvals that wait")
    deploy.add_argument("--automations", type=Path, metavar="FILE", help="automations.yaml by --file if not given")
    deploy.add_argument("--promote-on-publish", action="store_true", help="let `announce` start promotions")
    announce = commands.add_parser("announce", help="tell Prefect what changes in the store, for its triggers")
    announce.add_argument("--once", action="store_true", help="tell what is new, and end")
    worker = commands.add_parser("worker", help="carry out what is scheduled")
    worker.add_argument("--health-port", type=int, metavar="PORT", help="answer /health there, to every address")
    for command in (deploy, worker):
        command.add_argument("--pool-type", default="process", help="process, docker or kubernetes")
        command.add_argument("--pool", default="promptstore", metavar="NAME", help="work pool")
    return parser


def _parameters(flow: str, file: Path) -> BaseModel:
    model: type[BaseModel] = getattr(import_module("flows.parameters"), FLOWS[flow][1])
    try:
        return model.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"--parameters {file}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidInputError(f"--parameters {file}: {place}: {first['msg']}") from error


def _plain(result: Any) -> Any:
    if isinstance(result, BaseModel):
        return result.model_dump(mode="json")
    return asdict(result) if is_dataclass(result) and not isinstance(result, type) else result


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError):
        return f"{text}; {next_step(error)}"
    return text if isinstance(error, PromptStoreError) else f"{type(error).__name__}: {text}"


def _say(message: str, code: int, reason_file: Path | None) -> int:
    """On standard error, or in the file of a caller that will say it itself."""
    if reason_file is None:
        sys.stderr.write(f"error: {message}\n")
    else:
        reason_file.write_text(f"{message}\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    spare_start_and_end()
    sys.exit(main())
