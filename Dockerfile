# pipe on a CPU.
#
#     docker build -t pipe .
#     docker run --rm -v "$PWD:/study" pipe run pipelines/thesis.toml
#
# The study, its store and its results lie in the folder that is mounted at /study. Files belong to who runs the
# container: add `--user "$(id -u):$(id -g)"`. Models and data of the hub are cached where HF_HOME points.

FROM rust:1.95-bookworm AS build
WORKDIR /source
ARG PIPE_REVISION=
ENV PIPE_REVISION=${PIPE_REVISION}
COPY . .
# The download of crates and what is compiled are kept between builds, not in the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked && cp target/release/pipe /usr/local/bin/pipe

FROM debian:bookworm-slim
# Certificates for sources on the net; git tells the revision of the study for its records.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates git \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/pipe /usr/local/bin/pipe
# A home for any user: caches of the hub and of what was verified.
ENV HOME=/home/pipe
RUN mkdir -m 1777 /home/pipe && git config --system --add safe.directory /study
WORKDIR /study
ENTRYPOINT ["pipe"]
CMD ["--help"]
