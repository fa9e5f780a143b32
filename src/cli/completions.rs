//! `imgclass completions` and `imgclass man` describe the command line to a shell and to `man`.
//!
//! Both are made from the definition of the command line itself, so they cannot be out of date.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::{Failure, output};

/// The arguments of `imgclass completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell for which the script is meant
    shell: Shell,
}

/// The arguments of `imgclass man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// A folder that receives a page for every command; without it, the page of `imgclass` itself
    /// is printed
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn print_completions(
    args: &CompletionsArgs,
    mut command: Command,
) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "imgclass", &mut script);
    output::print(script)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn write_manual(args: &ManArgs, command: Command) -> Result<ExitCode, Failure> {
    match &args.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            clap_mangen::generate_to(command, folder)?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output::print(page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
