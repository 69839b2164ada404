# The rotator's image: one virtual environment on a slim base, not root, nothing to write but the ledger's volume.
#
# The base is named by tag here. Pin it by digest where you build, after checking the digest against a source that you
# trust:  docker build --build-arg BASE_IMAGE=python:3.13-slim@sha256:… .
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/rotator
COPY deploy/requirements-build.txt deploy/requirements.txt deploy/
RUN /build/bin/python3 -m pip install --require-hashes --only-binary :all: -r deploy/requirements-build.txt \
    && /build/bin/python3 -m pip --python /opt/rotator/bin/python3 install --require-hashes --only-binary :all: -r deploy/requirements.txt
COPY LICENSE README.md pyproject.toml ./
COPY rotator rotator
# The sandbox hands out credentials and behaves badly on purpose: a context that brings it along builds no image.
RUN test ! -e rotator/sandbox \
    && /build/bin/python3 -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/python3 -m pip --python /opt/rotator/bin/python3 install --no-deps --no-index /wheels/*.whl

FROM ${BASE_IMAGE}
ENV PATH=/opt/rotator/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    ROTATOR_HEALTH_URL=http://127.0.0.1:8850/healthz
COPY --from=build /opt/rotator /opt/rotator
# Numeric, so that runAsNonRoot can be checked. Only the ledger is written; mount a volume of this user there.
RUN mkdir -p /var/lib/rotator && chown 65532:65532 /var/lib/rotator
USER 65532:65532
WORKDIR /var/lib/rotator
VOLUME /var/lib/rotator
EXPOSE 8850
# Threads alive, not "rotations succeed": that is /readyz and the alerts. Any other answer than 2xx raises.
# A proxy from the environment would be asked about its own loopback, so none is.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open(os.environ['ROTATOR_HEALTH_URL'], timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["rotator"]
CMD ["run", "--config", "/etc/rotator/rotator.toml"]
