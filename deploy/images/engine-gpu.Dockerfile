# Engines on NVIDIA GPUs: our Python on NVIDIA's CUDA base, so that every node of a Ray cluster has the same patch version;
# vLLM's own image has another. Built by build.py.
ARG PYTHON_BASE
ARG CUDA_BASE
FROM ${PYTHON_BASE} AS python
# What installs software is no part of an image that runs it.
RUN rm -rf /usr/local/lib/python3.11/site-packages/* /usr/local/lib/python3.11/ensurepip /usr/local/bin/pip*

FROM ${CUDA_BASE} AS runtime
COPY --from=python /usr/local/bin /usr/local/bin
COPY --from=python /usr/local/lib /usr/local/lib
COPY --from=python /usr/local/include /usr/local/include
# The libraries Python's own modules are linked to; wget as in engine-cpu; verbs for NCCL over InfiniBand and RoCE.
# gcc stays, and is the only compiler: Triton compiles a launcher for each kernel when it is first used.
# Versions are the distribution's of the day, so that its security fixes come in; the bill of materials says which.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       ca-certificates libbz2-1.0 libffi8 liblzma5 libncursesw6 libreadline8t64 libsqlite3-0 libssl3t64 libuuid1 zlib1g \
       libnuma1 wget ibverbs-providers libibverbs1 librdmacm1t64 gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
    && ldconfig \
    && python3.11 -c "import bz2, ctypes, curses, lzma, readline, sqlite3, ssl, uuid, zlib"
# Nothing here changes its user. KubeRay can be configured to use login shells, whose profile sets PATH anew.
# hadolint ignore=SC2016
RUN find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && install -d -o 10001 -g 0 -m 0770 /var/lib/serving \
    && echo 'PATH=/opt/serving/bin:$PATH' > /etc/profile.d/serving.sh

FROM ${PYTHON_BASE} AS build
ARG SOURCE_DATE_EPOCH
COPY --from=runtime /var/lib/dpkg/status /etc/os-release /runtime/
RUN --mount=type=bind,target=/context python3.11 /context/assemble.py

FROM runtime
COPY --from=build /opt/serving /opt/serving
COPY --from=build /usr/share/sbom /usr/share/sbom
COPY LICENSE /usr/share/doc/gpt-oss-serving/LICENSE
ARG TITLE
ARG VERSION
ARG REVISION
ARG SOURCE
ARG CREATED
ARG BASE
LABEL org.opencontainers.image.title="${TITLE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
# LOGNAME: a user id that the platform chose has no name, and looking it up (torch does) would fail.
# NVIDIA_VISIBLE_DEVICES: the base says "all", which shows every GPU to a pod that asked for none; who asks gets his own.
ENV PATH=/opt/serving/bin:/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/serving SERVING_HOME=/var/lib/serving LOGNAME=serving \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
    NVIDIA_VISIBLE_DEVICES=void NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Any user of group 0 works. Writable are /var/lib/serving, /tmp and /dev/shm, which a read-only root has to mount.
USER 10001:0
WORKDIR /var/lib/serving
ENTRYPOINT []
CMD ["serving", "--help"]
