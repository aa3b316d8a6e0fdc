# syntax=docker/dockerfile:1.7
# Runs flows and jobs: tunes, gates, promotes. MLflow's and Prefect's servers run from it too, in the same versions.
# From the repository's root:
#   docker build -f infra/images/worker.Dockerfile -t promptstore-worker:0.1.0 .
# Both kinds, gpu and cpu: docker buildx bake -f infra/images/bake.json. The package index's torch carries CUDA; for the cpu
# kind name an index of CPU builds, which saves gigabytes. A kind that torch does not fit is not built.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH_INDEX=""
ARG KIND=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/promptstore
ENV PATH=/opt/promptstore/bin:$PATH
WORKDIR /src
# Before the code: a change of code does not fetch torch again.
COPY requirements.lock ./
RUN pip install -c requirements.lock ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch \
    && case "${KIND}" in \
        gpu) python -c 'import torch; assert torch.version.cuda, "torch without CUDA: leave TORCH_INDEX empty"' ;; \
        cpu) python -c 'import torch; assert not torch.version.cuda, "torch with CUDA: set TORCH_INDEX"' ;; \
    esac
COPY pyproject.toml LICENSE ./
COPY promptstore promptstore
COPY flows flows
RUN pip install -c requirements.lock '.[flows,postgresql]'

FROM python:${PYTHON}
RUN useradd --uid 10001 --create-home promptstore \
    && install -d -o promptstore -g promptstore /var/cache/promptstore /var/lib/promptstore
COPY --from=build /opt/promptstore /opt/promptstore
ENV PATH=/opt/promptstore/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PROMPTSTORE_CACHE_DIR=/var/cache/promptstore \
    PROMPTSTORE_STATE_DIR=/var/lib/promptstore \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DO_NOT_TRACK=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /home/promptstore
CMD ["python", "-m", "flows", "worker"]
