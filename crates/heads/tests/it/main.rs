//! The crate as its users meet it: training, and the file of a head.

mod data;
mod file;
mod training;
