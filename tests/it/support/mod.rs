//! What several modules of these tests share.

pub(crate) mod api;
pub(crate) mod binary;
pub(crate) mod model;
pub(crate) mod serving;
