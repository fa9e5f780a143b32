//! The command line: one file a subcommand. Parses, prints, and chooses the exit code; the work is the service's.

mod bench;
mod classify;
mod completions;
mod eval;
mod explain;
mod health;
mod load;
mod logging;
mod openapi;
mod progress;
mod serve;
mod weights;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Tells what is in a picture: a ResNet behind an HTTP interface and on the command line.
///
/// Without a command it serves. Every option can also be given by the environment variable that its help names.
#[derive(Debug, Parser)]
#[command(name = "imgclass", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Write logs as JSON lines
    #[arg(long, global = true, env = "IMGCLASS_JSON_LOGS")]
    json_logs: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the HTTP interface; this is what happens without a command
    Serve(Box<serve::ServeArgs>),
    /// Classify files, folders and URLs
    Classify(Box<classify::ClassifyArgs>),
    /// Show where in an image a class was seen: a PNG with a heat map
    Explain(Box<explain::ExplainArgs>),
    /// Measure accuracy and calibration on labelled images
    Eval(Box<eval::EvalArgs>),
    /// Measure the forward pass on this machine, or a running service
    Bench(Box<bench::BenchArgs>),
    /// Fetch, find, check and convert checkpoints
    Weights(weights::WeightsCommand),
    /// Print the OpenAPI specification
    Openapi,
    /// Print a shell's completions
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write one for every command
    Man(completions::ManArgs),
    /// Ask a running service whether it is ready; exit code 0 if it is
    Health(health::HealthArgs),
}

/// What ends a command badly: a text for people. The log has said more, where there is more.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command line and gives the process's exit code: 0 for success, 1 for failure, 2 for a command line that is wrong.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(with_default_command(arguments)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, on standard output and with exit code 0.
            let _ = error.print();
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
        Command::Bench(args) => bench::run(&args),
        Command::Weights(command) => weights::run(&command),
        Command::Openapi => openapi::run(),
        Command::Explain(args) => explain::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Completions(args) => completions::completions(&args, Cli::command()),
        Command::Man(args) => completions::man(&args, Cli::command()),
        Command::Health(args) => health::run(&args),
    };
    outcome.unwrap_or_else(|failure| {
        eprintln!("imgclass: {failure}");
        ExitCode::FAILURE
    })
}

/// No command means `serve`, with or without options.
fn with_default_command(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let asks_for_itself = ["-h", "--help", "-V", "--version"];
    let serves = match arguments
        .get(1)
        .map(|first| first.to_string_lossy().into_owned())
    {
        None => true,
        Some(first) => first.starts_with('-') && !asks_for_itself.contains(&first.as_str()),
    };
    if serves {
        arguments.insert(1.min(arguments.len()), "serve".into());
    }
    arguments
}

/// The runtime that commands with waiting in them use.
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
}
