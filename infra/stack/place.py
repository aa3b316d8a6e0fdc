"""The folder of a stack: its ports, its passwords, its data, its logs, and who runs."""

import fcntl
import json
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptstore.errors import ConflictError, InvalidInputError
from promptstore.store.files import write_atomically
from promptstore.testing.servers import WEED_PORTS

DEFAULT_PORTS: Mapping[str, int] = {
    "postgres": 54320,
    "mlflow": 5000,
    "prefect": 4200,
    "server": 8080,
    "s3.port": 8333,
    **{name: 54330 + index for index, name in enumerate(sorted(set(WEED_PORTS) - {"s3.port"}))},
}


@dataclass(frozen=True, slots=True)
class StackPlace:
    """Everything of one stack lies in `folder` and stays there when the stack goes down."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        return self.folder / "settings.json"

    @property
    def environment_file(self) -> Path:
        return self.folder / "env.sh"

    def pid_file(self, service: str) -> Path:
        return self.folder / "pids" / f"{service}.json"

    def log(self, service: str) -> Path:
        return self.folder / "logs" / f"{service}.log"

    def data(self, service: str) -> Path:
        return self.folder / service

    def mark(self, service: str) -> str:
        """What the processes of a service carry in their environment."""
        return f"{self.folder}#{service}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises ConflictError: another `up` or `down` is at work. InvalidInputError: the folder cannot be made."""
        try:
            for each in ("pids", "logs"):
                (self.folder / each).mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise InvalidInputError(f"stack folder {self.folder}: {error.strerror}; give another --folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(f"another `up` or `down` works in {self.folder}; wait for its end") from error
            yield


@dataclass(frozen=True, slots=True)
class StackSettings:
    """Made once by the first `up`, so that addresses and passwords stay what they were."""

    ports: Mapping[str, int]
    password: str
    access_key: str
    secret_key: str

    @classmethod
    def read(cls, place: StackPlace) -> "StackSettings | None":
        try:
            return cls(**json.loads(place.settings_file.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"{place.settings_file} is damaged ({error}); restore it, or start anew") from error

    @classmethod
    def make(cls, place: StackPlace, *, has_free_ports: bool) -> "StackSettings":
        """has_free_ports: instead of the usual ones, at first; later, where an earlier one is taken now.

        Not the usual ones even if they are free: two stacks that start at the same time would both choose them.
        """
        known = cls.read(place)
        ports = dict(known.ports if known else DEFAULT_PORTS)
        if has_free_ports:
            ports = _free_ports(ports, keeps=known is not None)
        made = cls(
            ports=ports,
            password=known.password if known else secrets.token_hex(16),
            access_key=known.access_key if known else secrets.token_hex(10),
            secret_key=known.secret_key if known else secrets.token_hex(20),
        )
        if made != known:
            text = json.dumps({name: getattr(made, name) for name in cls.__slots__}, indent=2)
            write_atomically(place.settings_file, text.encode() + b"\n")  # for its owner's eyes alone
        return made

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port' if service == 's3' else service]}"

    @property
    def weed_ports(self) -> Mapping[str, int]:
        return {name: self.ports[name] for name in WEED_PORTS}

    def database(self, name: str, driver: str) -> str:
        """SQLAlchemy's URL of one of the databases."""
        return f"postgresql+{driver}://promptstore:{self.password}@127.0.0.1:{self.ports['postgres']}/{name}"


def is_taken(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _free_ports(ports: Mapping[str, int], *, keeps: bool) -> dict[str, int]:
    """One for each name, the present one where it `keeps` and can; all held at once, so that none is given twice."""
    with ExitStack() as held:
        chosen: dict[str, int] = {}
        for name, port in ports.items():
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            may_stay = keeps and not is_taken(port) and port not in chosen.values()
            probe.bind(("127.0.0.1", port if may_stay else 0))
            chosen[name] = probe.getsockname()[1]
        return chosen
