//! Long checks of Precast, with short forms for the gate: `cargo xtask fuzz`, `cargo xtask crash`.

mod crash;
mod fuzz;
#[path = "../../cli/small.rs"]
mod small;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Crash(crash::Args),
    Fuzz(fuzz::Args),
    /// One target of `fuzz`, in the process that it starts.
    #[command(hide = true)]
    FuzzWorker(fuzz::worker::Args),
}

fn main() -> ExitCode {
    let good = match Cli::parse().task {
        Task::Crash(args) => crash::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::FuzzWorker(args) => {
            let report = fuzz::worker::run(&args);
            println!("{}", serde_json::to_string(&report).expect("plain data"));
            true
        }
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
