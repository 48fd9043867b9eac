# The gateway; with another lock, the tools. Built by build.py, which stages the context and refuses unpinned bases.
ARG PYTHON_BASE
FROM ${PYTHON_BASE} AS runtime
# What installs software is no part of an image that runs it, and nothing here changes its user.
RUN rm -rf /usr/local/lib/python3.11/site-packages/* /usr/local/lib/python3.11/ensurepip /usr/local/bin/pip* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && install -d -o 10001 -g 0 -m 0770 /var/lib/serving

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
# LOGNAME: a user id that the platform chose has no name, and looking it up would fail.
ENV PATH=/opt/serving/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/serving SERVING_HOME=/var/lib/serving LOGNAME=serving \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Any user of group 0 works. Writable are /var/lib/serving and /tmp, which a read-only root has to mount.
USER 10001:0
WORKDIR /var/lib/serving
ENTRYPOINT ["serving"]
CMD ["gateway"]
