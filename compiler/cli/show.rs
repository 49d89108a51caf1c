//! `precast show`: any stage as text.

use crate::failure::Outcome;
use crate::input::{self, Kind};
use crate::listing;
use precast_compiler::text;
use std::io::Write;
use std::path::PathBuf;

/// Print a model, or any stage of compiling a recipe, as text.
#[derive(clap::Args)]
pub struct Args {
    /// A model (.onnx, .pir) or a plan (.plan).
    input: PathBuf,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let out = match Kind::of(&args.input)? {
        Kind::Plan => {
            let plan = input::read_plan(&args.input)?;
            if json {
                serde_json::to_string(&plan).expect("a plan is plain data") + "\n"
            } else {
                listing::plan(&plan)
            }
        }
        _ => text::print(&input::read_ir(&args.input)?),
    };
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(())
}
