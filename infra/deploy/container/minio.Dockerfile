# MinIO, built from its pinned Go module: its makers publish no images any more.
# The same base as the host's: nothing more to download, and its Python can ask for MinIO's health.
ARG BASE=python:3.13-slim
ARG GO=golang:1.26

FROM ${GO} AS build
ARG VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
RUN CGO_ENABLED=0 GOBIN=/minio go install -trimpath -ldflags="-s -w" "github.com/minio/minio@${VERSION}"

FROM ${BASE}
COPY --from=build /minio/minio /usr/local/bin/minio
RUN install -d -o 10002 -g 10002 -m 700 /var/lib/minio /var/lib/minio-events
COPY infra/deploy/container/healthy.py /usr/local/lib/healthy.py
USER 10002:10002
WORKDIR /var/lib/minio
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s \
    CMD ["python3", "-I", "-S", "/usr/local/lib/healthy.py", "9000", "/minio/health/ready"]
ENTRYPOINT ["minio"]
CMD ["server", "/var/lib/minio", "--address", ":9000"]
