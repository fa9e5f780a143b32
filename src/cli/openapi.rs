//! `imgclass openapi`: the specification on standard output.

use std::io::Write;
use std::process::ExitCode;

use super::Failure;

pub(super) fn run() -> Result<ExitCode, Failure> {
    writeln!(std::io::stdout(), "{}", crate::api::specification())?;
    Ok(ExitCode::SUCCESS)
}
