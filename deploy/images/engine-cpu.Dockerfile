# Ray heads, directories, fetch Jobs and engines on vLLM's CPU build: one image, because all of them import the same code
# on the same Ray, and one is less to scan, carry and upgrade than two. Built by build.py.
ARG PYTHON_BASE
FROM ${PYTHON_BASE} AS runtime
# libnuma1: vLLM's kernels are linked to it. wget: KubeRay's readiness probe of Serve's workers calls it, in bash with grep.
# Versions are the distribution's of the day, so that its security fixes come in; the bill of materials says which.
# hadolint ignore=DL3008
RUN dpkg --status libnuma1 wget > /dev/null 2>&1 \
    || { apt-get update && apt-get install --yes --no-install-recommends libnuma1 wget \
         && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*; }
# What installs software is no part of an image that runs it, and nothing here changes its user.
# KubeRay can be configured to use login shells, whose profile sets PATH anew.
# hadolint ignore=SC2016
RUN rm -rf /usr/local/lib/python3.11/site-packages/* /usr/local/lib/python3.11/ensurepip /usr/local/bin/pip* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
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
ENV PATH=/opt/serving/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/serving SERVING_HOME=/var/lib/serving LOGNAME=serving \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
# Any user of group 0 works. Writable are /var/lib/serving, /tmp and /dev/shm, which a read-only root has to mount.
USER 10001:0
WORKDIR /var/lib/serving
ENTRYPOINT []
CMD ["serving", "--help"]
