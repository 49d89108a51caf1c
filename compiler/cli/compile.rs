//! `precast compile`: recipe in, plan out.

use crate::failure::Outcome;
use crate::listing;
use crate::recipe_args::{RecipeArgs, compile};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

/// Compile a recipe to a plan.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Where the plan goes; by default beside the recipe, with the extension .plan.
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Write every stage as a numbered text into this folder too.
    #[arg(long)]
    dump: Option<PathBuf>,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let recipe = args.recipe.load()?;
    let compiled = compile(&recipe, false)?;
    let out = args.out.clone().unwrap_or_else(|| args.recipe.recipe.with_extension("plan"));
    fs::write(&out, compiled.plan.to_json())?;
    if let Some(folder) = &args.dump {
        fs::create_dir_all(folder)?;
        for (i, (stage, text)) in compiled.stages.iter().enumerate() {
            fs::write(folder.join(format!("{i}-{stage}.pir")), text)?;
        }
    }
    let plan = &compiled.plan;
    if json {
        let peak = listing::peak_bytes(plan);
        say!("{}", json!({ "ok": true, "plan": out, "summary": plan.summary, "peak_bytes": peak }));
    } else {
        put!("{}", listing::summary(plan));
        say!("saved       {}", out.display());
    }
    Ok(())
}
