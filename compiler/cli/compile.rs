//! `precast compile`: recipe in, plan out.

use crate::failure::Outcome;
use crate::listing;
use crate::output::{make_folder, quiet, write_file};
use crate::recipe_args::{RecipeArgs, compile, stage};
use serde_json::json;
use std::path::PathBuf;

/// Compile a recipe to a plan.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Where the plan goes; by default beside the recipe, with the extension .plan (of an earlier
    /// stage: .STAGE.pir).
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Stop after this stage and write its text: import, autodiff, egraph or plan.
    #[arg(long, value_name = "STAGE")]
    to: Option<String>,
    /// Write every stage as a numbered file into this folder too.
    #[arg(long, conflicts_with = "to")]
    dump: Option<PathBuf>,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let recipe = args.recipe.load()?;
    if let Some(name) = args.to.as_deref().filter(|s| *s != "plan") {
        let text = stage(&recipe, &args.recipe.options(false), name)?;
        let extension = format!("{name}.pir");
        let out = args.out.clone().unwrap_or_else(|| args.recipe.recipe.with_extension(extension));
        write_file(&out, text.as_bytes())?;
        if json {
            say!("{}", json!({ "ok": true, "stage": name, "text": out }));
        } else if !quiet() {
            say!("saved       {}", out.display());
        }
        return Ok(());
    }
    let compiled = compile(&recipe, &args.recipe.options(false))?;
    let out = args.out.clone().unwrap_or_else(|| args.recipe.recipe.with_extension("plan"));
    let text = compiled.plan.to_json();
    write_file(&out, text.as_bytes())?;
    if let Some(folder) = &args.dump {
        make_folder(folder)?;
        for (i, (stage, text)) in compiled.stages.iter().enumerate() {
            write_file(&folder.join(format!("{i}-{stage}.pir")), text.as_bytes())?;
        }
        let last = format!("{}-plan.plan", compiled.stages.len());
        write_file(&folder.join(last), text.as_bytes())?;
    }
    let plan = &compiled.plan;
    if json {
        let peak = listing::peak_bytes(plan);
        say!(
            "{}",
            json!({ "ok": true, "plan": out, "summary": plan.summary, "peak_bytes": peak,
                    "uncalibrated": listing::uncalibrated(plan) })
        );
    } else if !quiet() {
        put!("{}", listing::summary(plan));
        say!("saved       {}", out.display());
    }
    Ok(())
}
