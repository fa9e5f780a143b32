//! The program `imgclass`: sets the system's allocator up, and runs the command line, or decodes
//! pictures where it was started as a decode worker.

use std::process::ExitCode;

fn main() -> ExitCode {
    imgclass_malloc::set_up();
    if let Some(code) = imgclass_decode::run_if_asked() {
        return code;
    }
    imgclass::cli::run(std::env::args_os())
}
