//! `imgclass completions` and `imgclass man`: what a shell and `man` want to know of the command line, made from the command line itself.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::Failure;

/// Print a shell's completions.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell that will read them
    shell: Shell,
}

/// Print or write manual pages.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write a page for every command into this folder, instead of the first one to standard output
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn completions(
    args: &CompletionsArgs,
    mut command: Command,
) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "imgclass", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &ManArgs, command: Command) -> Result<ExitCode, Failure> {
    match &args.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            clap_mangen::generate_to(command, folder)?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            std::io::stdout().write_all(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
