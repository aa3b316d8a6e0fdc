# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 3
MIXES ?= 50
REQUESTS ?= 32
# Images that tell Python to write no bytecode would compile the libraries anew in each of the processes started here.
export PYTHONDONTWRITEBYTECODE :=
STAMP := .venv/.setup-$(shell cat pyproject.toml requirements.lock 2>/dev/null | cksum | cut -d' ' -f1)

# The GPU's tests and benchmark need torch, transformers, safetensors, numpy and pytest alone: any Python with these.
GPU_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON))

.PHONY: help setup demo up down stack test test-ceph test-vllm test-kills test-mixes test-ray test-fast test-gpu check format bench bench-vllm bench-quality bench-gpu clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP):
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP) ## Build .venv from the lock; fetch the demo's model and data once
	@$(BIN)/promptstore assets fetch

demo: setup ## Tune, publish, promote and serve two prompts on real weights and text
	@$(BIN)/promptstore demo

up: setup ## Start the local stack: PostgreSQL, S3, MLflow, Prefect and a server; STACK=--free-ports if one is taken
	@$(BIN)/python -m infra.stack up $(STACK)

down: $(STAMP) ## Stop what `make up` started; its data stays in build/stack
	@$(BIN)/python -m infra.stack down

stack: $(STAMP) ## Show what of the stack is up, and where
	@$(BIN)/python -m infra.stack status

test: setup ## Run every test against real servers, in WORKERS processes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-ceph: $(STAMP) ## Check the store on a second S3 server, Ceph RGW
	@infra/servers/install-ceph.sh
	$(BIN)/python -m pytest -q -m ceph

test-vllm: setup ## Check the gateway in front of a real vLLM on the CPU; the first time installs 3.5 GB
	@infra/servers/install-vllm.sh
	$(BIN)/python -m pytest -q -m vllm tests/contract/test_vllm.py

test-kills: setup ## Kill every server of the stack at the worst moment, and see the loop end right
	@$(BIN)/python -m pytest -q -m kills

test-mixes: setup ## Compare MIXES x REQUESTS answers on real weights, in any mix, with the same request's alone
	@PROMPTSTORE_TEST_MIXES=$(MIXES) PROMPTSTORE_TEST_REQUESTS=$(REQUESTS) OMP_NUM_THREADS=1 \
		nice $(BIN)/python -m pytest -q tests/integration/serving/test_real_weights.py -k every_answer

test-ray: $(STAMP) ## Kill a node of a Ray cluster in the middle of a fit
	@$(BIN)/python -m pytest -q -m ray

test-fast: $(STAMP) ## Run the tests that need no server and no model
	@$(BIN)/python -m pytest -q tests/unit

test-gpu: ## Run the tests that a GPU decides, on the CPU where there is none; GPU_PYTHON=python3 needs no .venv
	@$(GPU_PYTHON) -m pytest -q -c tests/gpu/pytest.ini tests/gpu

check: $(STAMP) ## ruff, mypy strict, import-linter
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

bench: setup ## Measure speed as ratios in one run; writes build/bench.json
	@$(BIN)/python -m infra.bench speed

bench-vllm: setup ## Measure serving against vLLM on the CPU, as ratios in one run; writes build/bench.json
	@infra/servers/install-vllm.sh
	$(BIN)/python -m infra.bench speed --only serving_vllm

bench-quality: setup ## Measure accuracy against the peer; writes build/quality.json
	@$(BIN)/python -m infra.bench quality

bench-gpu: ## Measure tuning on the GPU, or a tiny model on the CPU; writes build/bench-gpu.json
	@$(GPU_PYTHON) -m infra.bench.tuning_gpu

clean: ## Remove what setup, the demo and the stack made
	@[ ! -d build/stack ] || [ ! -x $(BIN)/python ] || $(BIN)/python -m infra.stack down
	rm -rf .venv build promptstore-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
