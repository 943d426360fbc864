# One image for every component and for the command line.
#
#   docker build --build-arg VERSION=0.1.0 --tag kfp-unlearning-python:0.1.0 .
#
# The name has "python" in it on purpose: Kubeflow's compiler warns about a component image whose name has not.
# TORCH is what pip is told about torch: the plain pair is the CUDA build on x86-64; for a smaller CPU image give the
# package index that has those wheels:  --build-arg TORCH="--index-url <index of CPU wheels> torch torchvision"
# BASE is best named by its digest, which cannot be moved:  --build-arg BASE=python:3.11-slim@sha256:<digest>
ARG BASE=python:3.11-slim

# The wheel, and the list of what it needs. Only their contents reach the second stage, so a change of code, of a tool's
# settings or of this stage leaves the large layers below as they are.
FROM ${BASE} AS wheel
ARG PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_NO_CACHE_DIR=1
ARG PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY pyproject.toml README.md ./
RUN mkdir /dist && python3 -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(*project["dependencies"], *project["optional-dependencies"]["postgres"], sep="\n")' > /dist/requirements.txt
COPY shared shared
COPY components components
COPY pipelines pipelines
RUN python3 -m pip wheel --no-deps --wheel-dir /dist .

FROM ${BASE} AS installed
ARG PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_NO_CACHE_DIR=1
ARG PIP_ROOT_USER_ACTION=ignore

# Slowest to fetch, rarest to change: first torch, then the other dependencies, at the versions of constraints.txt.
ARG TORCH="torch torchvision"
COPY constraints.txt /constraints.txt
RUN python3 -m pip install --constraint /constraints.txt ${TORCH}
COPY --from=wheel /dist/requirements.txt /requirements.txt
RUN python3 -m pip install --constraint /constraints.txt --requirement /requirements.txt
COPY --from=wheel /dist/*.whl /dist/
RUN python3 -m pip install --no-deps /dist/*.whl && python3 -m pip check

# The bill of materials; what writes it stays in this stage.
FROM ${BASE} AS lister
ARG PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_NO_CACHE_DIR=1
COPY constraints.txt /constraints.txt
RUN python3 -m venv /tool && /tool/bin/python -m pip install --constraint /constraints.txt cyclonedx-bom

FROM installed AS listed
COPY --from=lister /tool /tool
RUN /tool/bin/cyclonedx-py environment --output-reproducible --output-file /materials.cdx.json "$(command -v python3)"

FROM installed
COPY --from=listed /materials.cdx.json /usr/share/kfp-unlearning/materials.cdx.json

# Any user id may run it: nothing is written outside /tmp, and libraries that ask for the user's name find one.
# Pickles are never loaded, nothing is reported home, and git is not looked for. Freed memory (up to 1 GiB) is kept for
# the next pass instead of being faulted in again.
ENV HOME=/tmp \
    USER=unlearn \
    MALLOC_MMAP_THRESHOLD_=33554432 \
    MALLOC_TRIM_THRESHOLD_=1073741824 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /tmp
USER 1001:0
CMD ["unlearn", "--help"]

ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="kfp-unlearning" \
      org.opencontainers.image.description="Machine-unlearning stages for Kubeflow Pipelines" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
