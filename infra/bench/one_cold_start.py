"""A process that opens a store and pulls a prompt: `python -m infra.bench.one_cold_start FOLDER REF SCRATCH STARTED`.

It says so in two lines of JSON: when the prompt is there, and when every task of the store was looked at.
STARTED: what `time.monotonic` said when this process was asked for.
"""

import json
import sys
import time
from pathlib import Path

from promptstore.settings import load_settings
from promptstore.wiring import open_prompt_store


def main(folder: str, ref: str, scratch: str, process_started: str) -> None:
    started = time.perf_counter()
    state_dir, cache_dir = Path(scratch) / "state", Path(scratch) / "cache"
    settings = load_settings(store=Path(folder).as_uri(), state_dir=state_dir, cache_dir=cache_dir)
    prompts = open_prompt_store(settings, create=False)
    prompts.pull(ref, for_model=None)
    _say(seconds=time.perf_counter() - started, process_s=time.monotonic() - float(process_started))
    tasks = prompts.state.tasks
    _say(tasks=len(tasks), versions=sum(len(task.versions) for task in tasks.values()))


def _say(**values: float) -> None:
    print(json.dumps({**values, "peak_mib": _peak_mib()}), flush=True)


def _peak_mib() -> float:
    """The most memory that this program held at once; `getrusage` would count the one that started it, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
