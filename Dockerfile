# The gateway as a container image: one static binary and the system's certificate authorities, nothing else. It needs no
# shell, no writable root and no privilege; the journal is on the volume.
#
#   docker build --build-arg VERSION="$(git describe --tags --always)" --build-arg COMMIT="$(git rev-parse HEAD)" -t endsession .
#
# How to run it: docs/deploy.md.
ARG GO_VERSION=1.26.8

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
WORKDIR /src
COPY . .
ARG TARGETOS=linux
ARG TARGETARCH=amd64
ARG VERSION=
ARG COMMIT=
ARG DATE=
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build GOOS=$TARGETOS GOARCH=$TARGETARCH make build VERSION="$VERSION" COMMIT="$COMMIT" DATE="$DATE"
# Volumes take over owner and mode of the directory that they cover.
RUN mkdir -m 0700 bin/state

FROM scratch
ARG VERSION=
ARG COMMIT=
ARG DATE=
LABEL org.opencontainers.image.title="endsession"
LABEL org.opencontainers.image.description="Ends a person's sessions everywhere, with proof"
LABEL org.opencontainers.image.source="https://github.com/endsession/endsession"
LABEL org.opencontainers.image.documentation="https://github.com/endsession/endsession/blob/main/docs/deploy.md"
LABEL org.opencontainers.image.licenses="Apache-2.0"
LABEL org.opencontainers.image.version="$VERSION"
LABEL org.opencontainers.image.revision="$COMMIT"
LABEL org.opencontainers.image.created="$DATE"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/LICENSE /LICENSE
COPY --from=build /src/bin/endsession /endsession
COPY --from=build --chown=65532:65532 /src/bin/state /var/lib/endsession
USER 65532:65532
VOLUME /var/lib/endsession
# gRPC, REST, and health with metrics.
EXPOSE 9090 8080 9091
# An orderly shutdown, which takes up to 30 s: docker stop --time 40.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s CMD ["/endsession", "health"]
ENTRYPOINT ["/endsession"]
CMD ["serve", "--config", "/etc/endsession/endsession.yaml"]
