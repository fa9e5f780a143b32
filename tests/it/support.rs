//! What several modules of these tests share.
//!
//! | to test | use |
//! |---|---|
//! | the routes, without a socket | [`service`]: a service in this process |
//! | connections | [`serving`]: such a service behind a socket on loopback |
//! | the program | [`binary`]: the binary, run as users run it |

pub(crate) mod binary;
pub(crate) mod model;
pub(crate) mod pictures;
pub(crate) mod service;
pub(crate) mod serving;
