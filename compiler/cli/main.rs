//! The `precast` command: joins the compiler and the runtime. One file per subcommand;
//! `docs/CLI.md` describes them.

/// `println!` that reports a closed pipe instead of panicking.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*)?
    }};
}

/// `print!`, likewise.
macro_rules! put {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        write!(std::io::stdout(), $($text)*)?
    }};
}

/// A line to standard error. Nobody may be listening there, which is no reason to end differently.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod blame;
mod calibrate;
mod check;
mod compare;
mod compile;
mod completions;
mod diff;
mod doctor;
mod eval;
mod explain;
mod failure;
mod follow;
mod grad;
mod identity;
mod init;
mod input;
mod kernels;
mod layers;
mod listing;
mod lock;
mod man;
mod memory;
mod metrics;
mod next;
mod output;
mod profile;
mod recipe_args;
mod resume;
mod saver;
mod show;
mod signals;
mod skips;
mod train;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use failure::Failure;
use std::io::Write;
use std::process::ExitCode;

/// A training-graph compiler: prices every cast, emits plans a person can read, trains with them.
#[derive(Parser)]
#[command(name = "precast", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object to standard output instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Print what the compiler does to standard error; repeat for more.
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// No progress and no summary: what is printed is errors, warnings, and what a command is for.
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
    Compile(compile::Args),
    Show(show::Args),
    Train(train::Args),
    Eval(eval::Args),
    Grad(grad::Args),
    Explain(explain::Args),
    Compare(compare::Args),
    Profile(profile::Args),
    Blame(blame::Args),
    Diff(diff::Args),
    Check(check::Args),
    Calibrate(calibrate::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
}

fn main() -> ExitCode {
    precast_runtime::files::size_limit_is_an_error();
    precast_runtime::files::open_many();
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut Cli::command()))?;
        Ok((cli, matches.subcommand_name().unwrap_or("precast").to_string()))
    });
    let (cli, command) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return failure::usage(&e, std::env::args_os().any(|a| a == "--json")),
    };
    log_to_stderr(cli.verbose);
    output::set_quiet(cli.quiet);
    let outcome = match cli.command {
        Command::Init(args) => init::run(&args, cli.json),
        Command::Compile(args) => compile::run(&args, cli.json),
        Command::Train(args) => train::run(&args, cli.json),
        Command::Eval(args) => eval::run(&args, cli.json),
        Command::Grad(args) => grad::run(&args, cli.json),
        Command::Show(args) => show::run(&args, cli.json),
        Command::Explain(args) => explain::run(&args, cli.json),
        Command::Compare(args) => compare::run(&args, cli.json),
        Command::Profile(args) => profile::run(&args, cli.json),
        Command::Blame(args) => blame::run(&args, cli.json),
        Command::Diff(args) => diff::run(&args, cli.json),
        Command::Check(args) => check::run(&args, cli.json),
        Command::Calibrate(args) => calibrate::run(&args, cli.json),
        Command::Doctor(args) => doctor::run(&args, cli.json),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command(), cli.json),
    };
    // What has no end of line is still in memory, and the disk may refuse it.
    let outcome = outcome.and_then(|()| Ok(std::io::stdout().flush()?));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has seen enough: `precast show … | head`.
        Err(Failure::Io(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let failure = failure.of(&command);
            failure.report(cli.json);
            failure.exit_code()
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => tracing::Level::INFO,
        2 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
}
