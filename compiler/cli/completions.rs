//! `precast completions`: scripts that complete this command in a shell.

use crate::failure::Outcome;

/// Print the script that completes this command in a shell.
#[derive(clap::Args)]
pub struct Args {
    /// The shell; `source <(precast completions bash)` in `~/.bashrc`, for one.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub fn run(args: &Args, mut command: clap::Command) -> Outcome {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut command, "precast", &mut script);
    put!("{}", String::from_utf8_lossy(&script));
    Ok(())
}
