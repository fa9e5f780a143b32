//! `imgclass openapi`: the specification on standard output.

use std::io::Write;
use std::process::ExitCode;

use super::Failure;

pub(super) fn run() -> Result<ExitCode, Failure> {
    std::io::stdout().write_all(crate::api::specification().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
