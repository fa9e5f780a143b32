//! What the tests of several crates share. No program depends on it.

#![forbid(unsafe_code)]

pub mod checkpoints;
pub mod hub_server;
mod reference;

pub use reference::shared;
