# syntax=docker/dockerfile:1
# The gateway: lean, no torch. `docker build -t retort .`
FROM python:3.12-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY router router
COPY gateway gateway
COPY retrain retrain
# every dependency comes as a wheel: nothing is compiled, no compiler is needed
RUN python -m venv /opt/retort \
    && /opt/retort/bin/pip install --only-binary=:all: --no-binary=retort .

FROM python:3.12-slim-bookworm

# no entry in passwd is needed: nothing looks the user up
RUN mkdir -p /var/lib/retort /etc/retort \
    && chown 10001:10001 /var/lib/retort
COPY --from=build /opt/retort /opt/retort
ENV PATH=/opt/retort/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    RETORT_CONFIG=/etc/retort/retort.yaml
USER 10001:10001
WORKDIR /var/lib/retort
VOLUME /var/lib/retort
EXPOSE 8080
STOPSIGNAL SIGTERM
# server.port must be 8080 for this check; Kubernetes does its own
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["retort"]
CMD ["serve", "--config", "/etc/retort/retort.yaml"]
