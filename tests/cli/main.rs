//! The command line, run as a person would.

mod checkpoints;
mod classes;
mod faults;
mod files;
mod finite;
mod follow;
mod idle;
mod init;
mod kinds;
mod lab;
#[cfg(target_os = "linux")]
mod locks;
mod losses;
#[cfg(unix)]
mod memory;
mod messages;
mod names;
mod plans;
mod ranges;
mod replays;
mod resume;
#[cfg(target_os = "linux")]
mod running;
mod runs;
mod scalars;
mod set;
mod shell;
#[cfg(target_os = "linux")]
mod signals;
mod small;
mod usage;

use std::process::{Command, Output};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_precast"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn precast(args: &[&str]) -> Output {
    command(args).output().expect("the binary runs")
}

fn stdout(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).expect("UTF-8")
}

fn stderr(o: &Output) -> String {
    String::from_utf8(o.stderr.clone()).expect("UTF-8")
}

fn code(o: &Output) -> i32 {
    o.status.code().expect("an exit code")
}
