//! imgclass tells what is in a picture: a ResNet behind an HTTP interface and on the command line.
//!
//! A module is a layer, and a layer imports only layers below it:
//!
//! | layer | what | may import |
//! |---|---|---|
//! | [`kernels`] | the fast CPU convolutions | nothing of ours |
//! | [`model`] | ResNet-18 to 152, checkpoints, labels, head | kernels |
//! | [`engine`] | admission, queue, batches, worker | model |
//! | [`image`] | bytes to network input | nothing of ours |
//! | [`fetch`] | image URL to bytes | nothing of ours |
//! | [`service`] | the use case: a request's way through all of them | fetch, image, engine, model |
//! | [`metrics`] | what Prometheus sees | engine, service |
//! | [`config`] | every limit and knob | the layers whose limits it fills in |
//! | [`api`] | HTTP | service, metrics |
//! | [`cli`] | the command line | service, config, api |
//!
//! `tests/architecture.rs` holds these lines; `docs/architecture.md` tells the story.

// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fetch;
pub mod image;
pub mod kernels;
pub mod metrics;
pub mod model;
pub mod service;
