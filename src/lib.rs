//! imgclass tells what is in a picture: a ResNet behind an HTTP interface and on the command line.
//!
//! This package is the service: what is below it has a crate of its own (`crates/`), so that the compiler holds who may know whom.
//! `docs/architecture.md` tells the story.

#![forbid(unsafe_code)]
// Outside input must never reach a panic; tests may.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod api;
pub mod cli;
pub mod config;
mod lane;
pub mod metrics;
pub mod service;
