# The two programs of the pipeline in one image: `orders` and `relay`.
FROM rust:1.95-slim-trixie AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential libssl-dev pkg-config zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# SQL is checked against the committed metadata.
ENV SQLX_OFFLINE=true
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --package orders --package relay --bins \
 && install -D --target-directory=/out target/release/orders target/release/relay

FROM debian:trixie-slim
# curl is what the health checks ask with.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libssl3t64 zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin orders
COPY --from=build /out/ /usr/local/bin/
USER 10001
CMD ["orders", "serve"]
