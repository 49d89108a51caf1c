//! `precast man`: manual pages.

use crate::failure::Outcome;
use crate::output::{make_folder, quiet, write_file};
use serde_json::json;
use std::path::PathBuf;

/// Write manual pages, one of the whole and one of each command.
#[derive(clap::Args)]
pub struct Args {
    /// A folder, `share/man/man1` of where programs are installed for one.
    folder: PathBuf,
}

pub fn run(args: &Args, mut command: clap::Command, json: bool) -> Outcome {
    make_folder(&args.folder)?;
    // Options of the whole belong to the pages of its commands, too.
    command.build();
    let mut saved = vec![];
    let commands: Vec<clap::Command> =
        command.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
    for page in std::iter::once(command).chain(commands) {
        let page = clap_mangen::Man::new(page)
            .source(concat!("precast ", env!("CARGO_PKG_VERSION")))
            .manual("Precast");
        let path = args.folder.join(page.get_filename());
        let mut text = vec![];
        page.render(&mut text)?;
        write_file(&path, &text)?;
        saved.push(path);
    }
    if json {
        say!("{}", json!({ "ok": true, "saved": saved }));
    } else if !quiet() {
        for path in saved {
            say!("saved       {}", path.display());
        }
    }
    Ok(())
}
