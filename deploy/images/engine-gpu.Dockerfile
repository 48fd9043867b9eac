# Engines on NVIDIA GPUs, on the base of every other image: the wheels of torch and vLLM bring CUDA, the node brings its
# driver (IMG-12). Built by build.py, one layer for each step: a release with the same locks shares all but the last with
# the one before (IMG-14).
ARG PYTHON_BASE
FROM ${PYTHON_BASE} AS build
RUN --mount=type=bind,target=/context python3.11 /context/assemble.py tools

FROM ${PYTHON_BASE}
# libnuma1 and wget as in engine-cpu; verbs for NCCL over InfiniBand and RoCE.
# gcc stays: Triton compiles a launcher for each kernel when it is first used, against Python's headers. g++ stays with
# NVIDIA's compiler, which is in the wheels: FlashInfer compiles what is not here already (IMG-13).
# Versions are the distribution's of the day, so that its security fixes come in; the bill of materials says which.
# hadolint ignore=DL3008,SC2086
RUN wanted="libnuma1 wget ibverbs-providers libibverbs1 librdmacm1 gcc g++ libc6-dev" \
    && { dpkg --status $wanted > /dev/null 2>&1 \
         || { apt-get update && apt-get install --yes --no-install-recommends $wanted \
              && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*; }; }
# What installs software is no part of an image that runs it, and nothing here changes its user.
# KubeRay can be configured to use login shells, whose profile sets PATH anew.
# hadolint ignore=SC2016
RUN rm -rf /usr/local/lib/python3.11/site-packages/* /usr/local/lib/python3.11/ensurepip /usr/local/bin/pip* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && install -d -o 10001 -g 0 -m 0770 /var/lib/serving \
    && echo 'PATH=/opt/serving/bin:$PATH' > /etc/profile.d/serving.sh
# NVIDIA's libraries and compiler; torch; all the rest but the project itself.
RUN --mount=type=bind,target=/context --mount=type=bind,from=build,source=/opt/tools,target=/opt/tools \
    python3.11 /context/assemble.py 'nvidia-.*'
RUN --mount=type=bind,target=/context --mount=type=bind,from=build,source=/opt/tools,target=/opt/tools \
    python3.11 /context/assemble.py 'torch|triton|tokenspeed-triton'
RUN --mount=type=bind,target=/context --mount=type=bind,from=build,source=/opt/tools,target=/opt/tools \
    python3.11 /context/assemble.py '(?!gpt.oss.serving).*'
RUN --mount=type=bind,target=/context --mount=type=tmpfs,target=/tmp \
    /opt/serving/bin/python /context/kernels.py
RUN --mount=type=bind,target=/context --mount=type=bind,from=build,source=/opt/tools,target=/opt/tools \
    python3.11 /context/assemble.py
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
# NVIDIA_…: a pod that asked for no GPU sees none, and NVIDIA's container runtime starts none on an older driver.
ENV PATH=/opt/serving/bin:/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin \
    CUDA_HOME=/usr/local/cuda \
    HOME=/var/lib/serving SERVING_HOME=/var/lib/serving LOGNAME=serving \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
    NVIDIA_VISIBLE_DEVICES=void NVIDIA_DRIVER_CAPABILITIES=compute,utility NVIDIA_REQUIRE_CUDA="cuda>=13.0"
# Any user of group 0 works. Writable are /var/lib/serving, /tmp and /dev/shm, which a read-only root has to mount.
USER 10001:0
WORKDIR /var/lib/serving
ENTRYPOINT []
CMD ["serving", "--help"]
