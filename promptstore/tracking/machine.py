"""How the machine does, by MLflow's own monitors and under its own names: its page of system metrics finds them."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

_log = logging.getLogger(__name__)
PREFIX = "system/"
INTERVAL_S = 10.0


class MachineMonitor:
    """Figures of CPU, memory, disk, network and GPUs, as far as this machine has them; for one thread.

    What cannot be measured is left out, and so is everything where MLflow or psutil are not installed.
    """

    def __init__(self, *, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._monitors: Sequence[Any] | None = None
        self._looked_at: float | None = None

    def look(self) -> dict[str, float]:
        """The figures by name, averages since the last look; nothing if that was less than the interval ago."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < self._interval_s:
            return {}
        self._looked_at = now
        if self._monitors is None:
            self._monitors = _monitors()
        figures: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            figures |= {f"{PREFIX}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return figures


def _monitors() -> Sequence[Any]:
    try:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    except ImportError as error:
        _log.info("no system metrics: %s", error)
        return ()
    found = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            found.append(kind())
        except Exception as error:  # noqa: BLE001 - a machine without a GPU, or without the library that looks at it
            _log.debug("%s: %s", kind.__name__, error)
    return found
