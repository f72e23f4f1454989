# The edge worker, and nothing else: no control-plane package, no database driver, no web assets, no compiler.
#
# `airbridge-ci build` makes the context: wheels/ (third-party wheels by the lock's hashes, and ours), third-party.txt
# and own.txt (the same, for --require-hashes), debs/, tools/uv. Nothing here reaches the network.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
ARG SOURCE_DATE_EPOCH=0
# Hash-based bytecode of the standard library: the root file system is read-only, so it is compiled now or at every start.
# No program keeps the right to become another user. Upstream's base brings pip: nothing installs packages in a running container.
RUN --mount=type=bind,source=debs,target=/debs \
    dpkg --install /debs/*.deb \
 && rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip* /usr/local/bin/wheel \
 && python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))' > /tmp/stdlib \
 && PYTHONHASHSEED=0 python3 -m compileall -q -x '/(test|tests|idlelib|lib2to3|site-packages|dist-packages)/' \
      --invalidation-mode unchecked-hash "$(cat /tmp/stdlib)" \
 && echo 'airbridge:x:10001:10001:AirBridge:/var/lib/airbridge:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'airbridge:x:10001:' >> /etc/group \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/airbridge \
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
 && rm -rf /tmp/stdlib /var/log/* /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old /var/lib/dpkg/*-old

# What would make two builds differ is taken out: two packages bring a script called fastapi, of which either may win, and
# what uv notes for itself (uv_cache.json) has a time in it.
RUN --mount=type=bind,source=.,target=/context \
    /context/tools/uv venv --quiet --no-cache --offline --python "$(command -v python3)" /opt/airbridge \
 && /context/tools/uv pip install --quiet --no-cache --offline --python /opt/airbridge/bin/python --link-mode copy \
      --no-index --find-links /context/wheels --no-deps --require-hashes --requirement /context/third-party.txt \
 && cd /opt/airbridge/lib/python3*/site-packages \
 && rm -f ./*.dist-info/uv_cache.json /opt/airbridge/bin/fastapi \
 && sed -i -e '/uv_cache\.json,/d' -e '/bin\/fastapi,/d' ./*.dist-info/RECORD \
 && rm -rf airflow/ui/dist airflow/ui/node_modules airflow/api_fastapi/auth/managers/simple/ui/dist \
 && PYTHONHASHSEED=0 /opt/airbridge/bin/python -m compileall -q --invalidation-mode unchecked-hash .

RUN --mount=type=bind,source=.,target=/context \
    /context/tools/uv pip install --quiet --no-cache --offline --python /opt/airbridge/bin/python --link-mode copy \
      --no-index --find-links /context/wheels --no-deps --require-hashes --requirement /context/own.txt \
 && cd /opt/airbridge/lib/python3*/site-packages \
 && rm -f ./*.dist-info/uv_cache.json && sed -i '/uv_cache\.json,/d' ./airbridge_*.dist-info/RECORD \
 && PYTHONHASHSEED=0 /opt/airbridge/bin/python -m compileall -q --invalidation-mode unchecked-hash airbridge

# The root is read-only: what the worker and its tasks write goes to the state folder or to /tmp.
ENV PATH=/opt/airbridge/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AIRBRIDGE_WORKER_STATE_DIR=/var/lib/airbridge

ARG REVISION
ARG VERSION
ARG AIRFLOW_VERSION
ARG PROTOCOL_VERSION
ARG BASE_NAME
LABEL org.opencontainers.image.title="airbridge-edge-worker" \
      org.opencontainers.image.description="AirBridge edge worker: runs Apache Airflow tasks near their data" \
      org.opencontainers.image.source="https://github.com/airbridge/airbridge" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      io.airbridge.airflow="${AIRFLOW_VERSION}" \
      io.airbridge.protocol="${PROTOCOL_VERSION}"

USER 10001:10001
WORKDIR /var/lib/airbridge
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["airbridge-worker", "status"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["airbridge-worker", "run"]
