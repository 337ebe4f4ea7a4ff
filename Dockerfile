# syntax=docker/dockerfile:1
# Both programs in one image: `seckill` (the default) and `consumer`.

FROM rust:1-bookworm AS build
WORKDIR /build
# For TLS to Kafka.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libssl-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
COPY . .
# The caches keep what was compiled between builds; they are no part of the image, so the
# binaries are copied out in the same step. `tls` is TLS to Kafka, with the system's OpenSSL.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --workspace --features seckill/tls,consumer/tls \
    && install -D -t /out target/release/seckill target/release/consumer

FROM debian:bookworm-slim
# What a server's TLS certificate is checked against, and OpenSSL for Kafka's.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/*
# A fixed number, so that Kubernetes can see that it is not root.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin seckill
COPY --from=build /out/ /usr/local/bin/
COPY docker/healthcheck /usr/local/bin/
# A library that the slim image lacks shows now, not at the first start.
RUN ! ldd /usr/local/bin/seckill /usr/local/bin/consumer | grep 'not found'
USER 10001
ENV SECKILL_LISTEN=0.0.0.0:3030 \
    SECKILL_OPS_LISTEN=0.0.0.0:3031 \
    SECKILL_CONSUMER_OPS_LISTEN=0.0.0.0:3032
EXPOSE 3030 3031 3032
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["healthcheck", "3031"]
CMD ["seckill", "serve"]
