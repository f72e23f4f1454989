# A worker image with tools for tasks, built by `airbridge-ci build images/derived/tools.Dockerfile --from dist`.
# BASE_IMAGE is the edge worker of that build. What is installed must leave no set-user-id program.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
USER 0
RUN apt-get -o Acquire::Retries=3 update \
 && apt-get -o Acquire::Retries=3 install --yes --no-install-recommends jq \
 && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/lib/dpkg/*-old
USER 10001:10001
