#!/usr/bin/env bash
# Writes requirements.lock from the environment that `make setup` built: every version, no hashes, no index host.
# Used as constraints (`pip install -c`), so that one file fits the CPU and the CUDA build of torch alike.
set -euo pipefail
cd "$(dirname "$0")/.."
{
    echo "# Pinned versions, used as constraints. Regenerate with infra/lock.sh after an upgrade that passes make test."
    .venv/bin/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$//' |
        grep -viE '^(pip|setuptools|wheel|triton|nvidia-|cuda-)' | sort -f
} >requirements.lock
