"""Up, down, status: each may be repeated, and none does anything twice."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infra.stack.environment import shell_file
from infra.stack.place import StackPlace, StackSettings, is_taken
from infra.stack.service import Service, wait_for_all
from infra.stack.services import stages
from promptstore.errors import ConflictError, NotFoundError
from promptstore.store.files import write_atomically

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Standing:
    """How one service does."""

    service: Service
    pid: int | None
    is_ready: bool

    @property
    def word(self) -> str:
        if self.pid is None:
            return "down"
        return "up" if self.is_ready else "not answering"


def up(place: StackPlace, say: Say, *, has_free_ports: bool = False) -> None:
    """Start what does not run yet and wait until everything answers. What this call started is stopped if it fails.

    Raises:
        MissingServerError: a server is not installed; nothing was started.
        ConflictError: a port is taken, or another `up` or `down` is at work; nothing was started.
        PromptStoreError: a server ended or does not answer; holds the end of its log.
    """
    with place.locked():
        known = StackSettings.read(place)
        is_partly_up = known is not None and any(each.process for each in _services(place, known))
        settings = StackSettings.make(place, has_free_ports=has_free_ports and not is_partly_up)
        ordered = stages(place, settings)
        services = [service for stage in ordered for service in stage]
        _end_remains(services, say)
        _require_ports(services)
        started: list[Service] = []
        try:
            for stage in ordered:
                for service in stage:
                    _start(service, started, say)
                wait_for_all(stage)
        except BaseException:
            for service in reversed(started):
                say(f"{service.name}: stopped again")
                service.stop()
            raise
        write_atomically(place.environment_file, shell_file(place, settings).encode())


def down(place: StackPlace, say: Say) -> None:
    """Stop what `up` started, the last stage first, all of a stage at once; all data stays."""
    if not place.settings_file.exists():
        say(f"nothing was ever started in {place.folder}")
        return
    with place.locked():
        for ordered in reversed(_stages(place)):
            stage = ordered[::-1]
            with ThreadPoolExecutor(len(stage)) as pool:
                for service, was_running in zip(stage, pool.map(Service.stop, stage), strict=True):
                    say(f"{service.name}: {'stopped' if was_running else 'was down'}")


def status(place: StackPlace) -> list[Standing]:
    """Raises NotFoundError: there never was a stack in this folder."""
    standings = []
    for service in _services(place):
        process = service.process
        is_ready = process is not None and service.is_ready()
        standings.append(Standing(service, None if process is None else process.pid, is_ready))
    return standings


def _services(place: StackPlace, settings: StackSettings | None = None) -> list[Service]:
    return [service for stage in _stages(place, settings) for service in stage]


def _stages(place: StackPlace, settings: StackSettings | None = None) -> tuple[tuple[Service, ...], ...]:
    settings = settings or StackSettings.read(place)
    if settings is None:
        raise NotFoundError(f"there is no stack in {place.folder}; `make up` starts one")
    return stages(place, settings)


def _end_remains(services: Iterable[Service], say: Say) -> None:
    """Children whose parent was killed would hold its port, or its data."""
    for service in services:
        if service.process is None and service.stop():
            say(f"{service.name}: ended what a killed one had left behind")


def _require_ports(services: Iterable[Service]) -> None:
    taken = [
        f"{port} ({service.name}{'' if service.name == name else ', ' + name})"
        for service in services
        if service.process is None
        for name, port in service.ports.items()
        if is_taken(port)
    ]
    if taken:
        raise ConflictError(
            f"somebody else listens on port {', '.join(taken)}; nothing was started. "
            "End that program, or take other ports: `make up STACK=--free-ports`"
        )


def _start(service: Service, started: list[Service], say: Say) -> None:
    if process := service.process:
        note = (
            "" if service.is_as_asked else ", with other settings than asked for now: `make down` first to change them"
        )
        say(f"{service.name}: runs already (process {process.pid}){note}")
        return
    say(f"{service.name}: starting at {service.address}")
    started.append(service)
    service.start()
