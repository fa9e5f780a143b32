//! Tests of fetching through the crate's public interface.

mod data_url;
mod hostile;
mod policy;
mod resolve;
mod server;
