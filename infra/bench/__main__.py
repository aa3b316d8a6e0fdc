"""`make bench` and `make bench-quality`: every benchmark, one table, one file.

The file is written after every part, and a part that is measured again replaces its own rows alone.
"""

import argparse
import importlib
from pathlib import Path

from infra.bench.measurement import Measurement, keep, report

SPEED = ("store", "registry", "tuning", "serving", "serving_vllm", "orchestration", "fan_out")
QUALITY = ("quality",)


def main() -> None:
    """Run one suite, or the parts that are named, and write `build/bench.json` or `build/quality.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=("speed", "quality"))
    parser.add_argument("--only", nargs="*", default=(), help="parts to run; all if none are named")
    arguments = parser.parse_args()
    parts = SPEED if arguments.suite == "speed" else QUALITY
    path = Path("build") / ("bench.json" if arguments.suite == "speed" else "quality.json")
    rows: list[Measurement] = []
    for part in arguments.only or parts:
        measured = importlib.import_module(f"infra.bench.{part}").measurements()
        keep(measured, path)
        rows += measured
    report(rows, path)


if __name__ == "__main__":
    main()
