//! Precision plans as text for snapshot tests: what a person wants to be told when it changes, and
//! nothing that changes by itself.
//!
//! ```no_run
//! let text = precast_compiler::snapshot::precision("recipe.toml").unwrap_or_else(|e| panic!("{e}"));
//! // With the crate `insta`: insta::assert_snapshot!(text);
//! ```

use crate::diagnostic::Result;
use crate::frontend::recipe::{Recipe, TrainLength};
use crate::pipeline::{self, Compiled, Options};
use crate::precision::casts::is_cast;
use std::fmt::{self, Write};
use std::path::Path;

/// The precision plan of a recipe as text: for every operation its formats and the reason, and
/// every cast with who asked for it. Names are the model's own, and there are no prices, offsets or
/// indices, so that a line changes only when a decision about it changes.
///
/// `device = "cpu"` is planned as a processor without 16-bit products whatever machine this runs
/// on; name a target in the recipe to plan for another.
///
/// # Errors
/// Whatever is wrong with the recipe, its model or its data.
pub fn precision(recipe: impl AsRef<Path>) -> Result<String> {
    let mut recipe = Recipe::load(recipe.as_ref())?;
    let import = recipe.import_options(true)?;
    let total_steps = match recipe.train.length {
        TrainLength::Epochs(_) if recipe.data.source.is_none() => None,
        _ => Some(recipe.total_steps()?),
    };
    recipe.data.dims = import.dims.into_iter().collect();
    let target_rows = recipe.target_rows()?;
    let options =
        Options { shapes: import.input_shapes, target_rows, total_steps, ..Options::default() };
    Ok(of(&pipeline::compile(&recipe, &options)?))
}

/// [`precision`] of what was compiled already.
pub fn of(compiled: &Compiled) -> String {
    let mut out = String::new();
    write(&mut out, compiled).expect("writing to a String");
    out
}

fn write(out: &mut String, c: &Compiled) -> fmt::Result {
    let (plan, s) = (&c.plan, &c.plan.summary);
    writeln!(out, "{} on {}, policy {}", plan.model, plan.target.name, s.policy)?;
    let shares: Vec<String> =
        s.product_flops.iter().map(|(d, share)| format!("{:.0} % {d}", share * 100.0)).collect();
    writeln!(
        out,
        "products: {}",
        if shares.is_empty() { "none".into() } else { shares.join(", ") }
    )?;
    writeln!(out, "loss scale: {}", if s.scaled { "yes" } else { "no" })?;
    writeln!(out, "\noperations")?;
    for d in plan.journal.iter().filter(|d| !is_cast(d)) {
        writeln!(out, "  {}  {}  {}", d.op, d.chosen, d.reason)?;
    }
    writeln!(out, "\ncasts")?;
    for r in &c.casts {
        writeln!(out, "  {}  {}->{}  {}", r.of, r.from, r.to, r.asked_by())?;
    }
    Ok(())
}
