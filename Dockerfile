# syntax=docker/dockerfile:1
# The service in a container. Build and run:
#   docker build -t imgclass .
#   docker run -p 8000:80 imgclass
# Weights, volumes, ports and probes: docs/operations.md.

# As in rust-toolchain.toml; .ci/run compares the two.
ARG RUST_VERSION=1.95.0

# ---- build: both stages are Debian 12, so that the binary meets the C library it was linked with ----
FROM rust:${RUST_VERSION}-slim-bookworm AS build
WORKDIR /src

# The dependencies, in a layer that only a change of a manifest builds anew. Our own crates are
# empty here. Their build products are removed again: the sources that follow may be older, and
# cargo would take the products for up to date.
COPY Cargo.toml Cargo.lock ./
COPY crates/av1/Cargo.toml crates/av1/
COPY crates/checkpoint/Cargo.toml crates/checkpoint/
COPY crates/cuda/Cargo.toml crates/cuda/
COPY crates/decode/Cargo.toml crates/decode/
COPY crates/engine/Cargo.toml crates/engine/
COPY crates/fetch/Cargo.toml crates/fetch/
COPY crates/heads/Cargo.toml crates/heads/
COPY crates/image/Cargo.toml crates/image/
COPY crates/kernels/Cargo.toml crates/kernels/
COPY crates/malloc/Cargo.toml crates/malloc/
COPY crates/network/Cargo.toml crates/network/
COPY crates/test-support/Cargo.toml crates/test-support/
COPY tools/empty-sources.sh tools/
RUN tools/empty-sources.sh \
    && cargo build --release --locked --bin imgclass \
    && cargo clean --release --workspace

COPY crates crates
COPY src src
# The page at /, which is compiled into the binary.
COPY web web
RUN cargo build --release --locked --bin imgclass

# ---- weights: none unless asked for, as --build-arg MODEL=timm/resnet50.tv2_in1k ----
FROM build AS weights
# A repository on the Hugging Face hub, and its branch, tag or commit.
ARG MODEL=
ARG REVISION=main
# For a private repository: --secret id=hf_token,src=FILE. It is in no layer, no variable and no
# history.
RUN --mount=type=secret,id=hf_token \
    mkdir -p /out/weights /out/cache \
    && if [ -n "$MODEL" ]; then \
         export HF_HOME=/tmp/huggingface HF_TOKEN_PATH=/run/secrets/hf_token \
         && file="$(target/release/imgclass weights fetch --model "$MODEL" --revision "$REVISION")" \
         && install -m 644 "$file" /out/weights/resnet50.safetensors \
         && for name in config.json preprocessor_config.json; do \
              config="$(dirname "$file")/$name"; \
              if [ -e "$config" ]; then install -m 644 "$config" "/out/weights/$name" || exit 1; fi; \
            done \
         && target/release/imgclass weights verify --weights /out/weights/resnet50.safetensors \
         && rm -r /tmp/huggingface; \
       fi

# ---- run: the C library, libgcc and CA certificates; no shell, no package manager ----
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="imgclass" \
      org.opencontainers.image.description="Image classification by ResNets over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
# Here weights/resnet50.safetensors is looked for before the hub is asked: mount a folder at
# /app/weights.
WORKDIR /app
COPY --from=weights /out/weights /app/weights
# What the hub sends is kept here; the folder is the user's own, so that a volume that is mounted
# over it is too.
COPY --from=weights --chown=65532:65532 /out/cache /cache
COPY --from=build /src/target/release/imgclass /usr/local/bin/imgclass
# PORT and not --port: `imgclass health` asks at the same one. A port under 1024 without root:
# docs/operations.md.
ENV PORT=80 \
    HF_HOME=/cache/huggingface
EXPOSE 80
# In numbers, so that Kubernetes' runAsNonRoot can tell.
USER 65532:65532
STOPSIGNAL SIGTERM
# The long start period costs nothing, as the first success ends it, and leaves time for a download.
HEALTHCHECK --interval=10s --timeout=6s --start-period=10m --retries=3 CMD ["imgclass", "health"]
ENTRYPOINT ["imgclass"]
CMD ["serve"]
