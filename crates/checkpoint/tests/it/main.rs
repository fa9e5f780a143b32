//! What supplies weights, through the crate's public interface.

mod convert;
mod descriptions;
mod hub;
