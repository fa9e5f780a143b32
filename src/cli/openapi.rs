//! `imgclass openapi` prints the specification of the HTTP interface.

use std::process::ExitCode;

use super::{Failure, output};

pub(super) fn run() -> Result<ExitCode, Failure> {
    output::print(crate::api::specification())?;
    Ok(ExitCode::SUCCESS)
}
