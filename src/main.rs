//! The program `imgclass`: sets the allocator, and runs the command line.

use std::process::ExitCode;

use imgclass_kernels::LargeBlocks;

/// Keeps the memory of a forward pass's activations for the next pass, instead of returning its
/// pages to the system and asking for them again.
#[global_allocator]
static ALLOCATOR: LargeBlocks = LargeBlocks;

fn main() -> ExitCode {
    LargeBlocks::set_up_system();
    imgclass::cli::run(std::env::args_os())
}
