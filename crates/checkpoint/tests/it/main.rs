//! What supplies weights, through the crate's public interface.

mod hub;
