//! The program `imgclass`: sets the system's allocator up, and runs the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    imgclass_malloc::set_up();
    imgclass::cli::run(std::env::args_os())
}
