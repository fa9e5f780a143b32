//! The program `imgclass`: sets the system's allocator up, and runs the command line, or decodes
//! pictures where it was started as a decode worker.

use std::process::ExitCode;

fn main() -> ExitCode {
    if imgclass_decode::is_worker() {
        imgclass_malloc::set_up_decode_worker();
        return imgclass_decode::run_worker();
    }
    imgclass_malloc::set_up();
    imgclass::cli::run(std::env::args_os())
}
