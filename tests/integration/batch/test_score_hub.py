"""`promptstore score` over `hf:` rows, through the real `datasets` library and a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

from promptstore.testing.served import live_server, store_of
from promptstore.testing.tiny_models import tiny_llama

CARD = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: test.jsonl
---
"""


def test_a_split_of_a_data_set_is_scored_and_judged(tmp_path: Path) -> None:
    model = tiny_llama()
    folder, output = tmp_path / "reviews", tmp_path / "answers.jsonl"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    rows = [{"text": text, "label": label} for text, label in (("good", "pos"), ("bad", "neg"), ("so so", "neg"))]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    with live_server(store_of(model), model) as live:
        arguments = ["score", "sentiment", f"hf:{folder}/test", "-o", str(output), "--server", live.url, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "promptstore", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 3
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["version"] for answer in answers] == ["sentiment:1"] * 3
