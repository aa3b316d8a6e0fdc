"""What a lent GPU machine has: torch, transformers, safetensors, numpy and pytest, and nothing else of ours."""

import subprocess
import sys

SCRIPT = """
import sys
import infra.bench.tuning_gpu
import promptstore.lm.source, promptstore.tuning.fit, promptstore.runtime.predictor
import promptstore.testing.tiny_models, promptstore.testing.tuning_tasks
absent = ("mlflow prefect datasets pydantic_settings platformdirs cryptography sqlalchemy "
          "fastapi typer matplotlib peft").split()
print([name for name in absent if name in sys.modules])
"""


def test_tuning_and_its_gpu_benchmark_import_no_more_than_a_gpu_machine_has() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
