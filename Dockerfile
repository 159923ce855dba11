# The image of every node, CPU and GPU alike: torch's wheels carry CUDA, the driver comes from the node (NVIDIA container toolkit).
#
#     docker build -t registry.example/pthnet:0.1.0 .
#
# Not a Ray base image: theirs pins another Python stack, and this one has nothing in it that the project does not need.
FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/pthnet
ENV PATH=/opt/pthnet/bin:$PATH
WORKDIR /src
# dependencies first: they change seldom, and their layer is the big one
COPY pyproject.toml README.md ./
RUN mkdir -p workflows tasks cluster pthnet storage \
    && for room in workflows tasks cluster pthnet storage; do touch $room/__init__.py; done \
    && pip install . && pip uninstall -y pthnet
COPY workflows workflows
COPY tasks tasks
COPY cluster cluster
COPY pthnet pthnet
COPY storage storage
RUN pip install --no-deps .

FROM python:3.11-slim
# wget: KubeRay's own probes call it where a manifest sets none; procps: Ray's reporter reads processes with it;
# gcc and libc6-dev: torch.compile builds the launchers of its GPU kernels with them
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget procps gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray
COPY --from=build /opt/pthnet /opt/pthnet
ENV PATH=/opt/pthnet/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0 \
    AWS_REQUEST_CHECKSUM_CALCULATION=when_required \
    PYTHONUNBUFFERED=1
# numeric, so that Kubernetes can see it is not root
USER 1000
WORKDIR /home/ray
CMD ["pthnet", "--help"]
