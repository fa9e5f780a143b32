//! The command line of `imgclass`.
//!
//! [`run`] parses the arguments, starts logging, and calls the subcommand. Each subcommand has a
//! file of its own; a subcommand's doc comments are its help texts. What several subcommands need
//! is in `inputs` (images named on the command line), `service` (loading the model, and answers),
//! `output` and `progress`.

mod bench;
mod classify;
mod completions;
mod eval;
mod explain;
mod health;
mod inputs;
mod labelled;
mod logging;
mod openapi;
mod output;
mod progress;
mod serve;
mod service;
mod train;
mod weights;

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Classifies images with a ResNet, over HTTP and on the command line.
///
/// Without a command, imgclass serves. The options of `serve` can also be given by environment
/// variables; the help of each option names its variable.
#[derive(Debug, Parser)]
#[command(name = "imgclass", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Write the log as JSON, one object per line
    #[arg(long, global = true, env = "IMGCLASS_JSON_LOGS")]
    json_logs: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the HTTP interface; this is also what happens without a command
    Serve(Box<serve::ServeArgs>),
    /// Classify image files, folders and URLs
    Classify(Box<classify::ClassifyArgs>),
    /// Show where the network sees a class in an image, as a heat map
    Explain(Box<explain::ExplainArgs>),
    /// Measure accuracy and calibration on labelled images
    Eval(Box<eval::EvalArgs>),
    /// Train a classifier for your own classes on the model's features
    Train(Box<train::TrainArgs>),
    /// Measure the speed of forward passes on this machine, or of a running service
    Bench(Box<bench::BenchArgs>),
    /// Download, find, check and convert checkpoints
    Weights(Box<weights::WeightsCommand>),
    /// Print the OpenAPI specification of the HTTP interface
    Openapi,
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write a page for every command
    Man(completions::ManArgs),
    /// Ask a running service whether it is ready
    ///
    /// The exit code is 0 if the service is ready, and 1 if it is not or cannot be reached.
    Health(health::HealthArgs),
}

/// Says why a command failed, in a text for the user.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command line and returns the exit code of the process.
///
/// The code is 0 for success, 1 for failure, and 2 for wrong arguments.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(with_default_command(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too; they go to standard output, with exit code 0.
            let text = error.to_string();
            let shown = output::printable_lines(&text);
            if shown == text {
                let _ = error.print();
            } else {
                // An argument can be a file's name, which others have chosen.
                eprint!("{shown}");
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let default_level = if matches!(cli.command, Command::Serve(_)) {
        "info"
    } else {
        "warn"
    };
    let _logging = match logging::start(default_level, cli.json_logs) {
        Ok(logging) => logging,
        Err(failure) => {
            eprintln!("imgclass: traces cannot be exported: {failure}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Classify(args) => classify::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Weights(command) => weights::run(&command),
        Command::Openapi => openapi::run(),
        Command::Completions(args) => completions::print_completions(&args, Cli::command()),
        Command::Man(args) => completions::write_manual(&args, Cli::command()),
        Command::Health(args) => health::run(&args),
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("imgclass: {}", output::printable(&failure.to_string()));
        ExitCode::FAILURE
    })
}

/// Inserts the command `serve` if the arguments name no command.
fn with_default_command(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let first = arguments
        .get(1)
        .map(|first| first.to_string_lossy().into_owned());
    // These ask about imgclass itself, not about `serve`.
    let is_general = |option: &str| ["-h", "--help", "-V", "--version"].contains(&option);
    let names_no_command =
        first.is_none_or(|first| first.starts_with('-') && !is_general(first.as_str()));
    if names_no_command {
        arguments.insert(1.min(arguments.len()), "serve".into());
    }
    arguments
}

/// Runs a command's future to its end.
///
/// Name look-ups and reads that still block a thread then are left behind: nobody waits for them.
fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}

/// Creates the asynchronous runtime, with a thread for each core.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_means_serve() {
        let cases: [(&[&str], &[&str]); 5] = [
            (&["imgclass"], &["imgclass", "serve"]),
            (
                &["imgclass", "--port", "1"],
                &["imgclass", "serve", "--port", "1"],
            ),
            (&["imgclass", "--help"], &["imgclass", "--help"]),
            (&["imgclass", "-V"], &["imgclass", "-V"]),
            (&["imgclass", "openapi"], &["imgclass", "openapi"]),
        ];
        for (given, expected) in cases {
            let found = with_default_command(given.iter().map(OsString::from));
            assert_eq!(
                found,
                expected.iter().map(OsString::from).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn the_documentation_lists_every_option_of_serve_with_its_variable() {
        let documentation = include_str!("../docs/operations.md");
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for option in serve.get_arguments().chain(command.get_arguments()) {
            let (Some(flag), Some(variable)) = (option.get_long(), option.get_env()) else {
                continue;
            };
            let row = format!("| `--{flag}` | `{}`", variable.to_string_lossy());
            assert!(documentation.contains(&row), "no row begins with {row}");
        }
        let is_option = |flag: &str| {
            let mut options = serve.get_arguments().chain(command.get_arguments());
            options.any(|option| option.get_long() == Some(flag))
        };
        let rows = documentation.lines().filter_map(|line| {
            let flag = line.strip_prefix("| `--")?;
            flag.split_once('`')
        });
        for (flag, _) in rows {
            assert!(is_option(flag), "--{flag} is documented but not an option");
        }
    }
}
