//! The binary: arguments in, exit code out.

use std::process::ExitCode;

use imgclass_kernels::LargeBlocks;

/// Keeps a forward pass's activations for the next one instead of giving their pages back and forth.
#[global_allocator]
static ALLOCATOR: LargeBlocks = LargeBlocks;

fn main() -> ExitCode {
    LargeBlocks::set_up_system();
    imgclass::cli::run(std::env::args_os())
}
