# The one place that names the upstream base of both images. A dependency bot bumps this line; `airbridge-ci build`
# reads it and hands it to the Dockerfiles as BASE_IMAGE, `airbridge-ci parity` refuses any other base.
# The digest is that of the multi-architecture index.
FROM python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254
