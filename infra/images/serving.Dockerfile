# syntax=docker/dockerfile:1.7
# Serves prompts; nothing of training is inside. From the repository's root:
#   docker build -f infra/images/serving.Dockerfile -t promptstore-serving:0.1.0 .
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
RUN pip install -c requirements.lock '.[serving,postgresql]'

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
    HF_HUB_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /home/promptstore
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
# Outside the container there is nobody without a key: give --api-keys FILE, or PROMPTSTORE_API_KEY.
CMD ["promptstore", "serve", "--host", "0.0.0.0", "--port", "8080"]
