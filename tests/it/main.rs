//! The service, its interfaces and its command line, as their users meet them.

mod support;

mod access;
mod archive;
mod bad_checkpoints;
mod bad_clients;
mod cli;
mod contract;
mod convert;
mod decoding;
mod devices;
mod families;
mod images;
mod inference;
mod metrics;
mod observability;
mod own_classes;
mod page;
mod probabilities;
mod tools;
