//! `precast grad`: one step, everything it computed, for comparing with another framework.

use crate::failure::Outcome;
use crate::recipe_args::{self, RecipeArgs, compile, open, open_data};
use precast_plan::Storage;
use precast_runtime::tensors::{Element, HostTensor, write_tensors};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Run one step and write loss, outputs, gradients and updated state as safetensors.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Where the tensors go.
    #[arg(short, long)]
    out: PathBuf,
    /// Threads to use; 0 for every core.
    #[arg(long, default_value_t = 0, value_parser = recipe_args::threads)]
    threads: usize,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let recipe = args.recipe.load()?;
    let data = open_data(&recipe)?;
    let plan = compile(&recipe, &args.recipe.options(true))?.plan;
    let (mut session, mut data) = open(&recipe, plan, data, args.threads)?;
    let report = session.step_from(|| data.next_batch())?;
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, t: HostTensor| {
        let Element::Plan(dtype) = t.element else { unreachable!("plans hold plan formats") };
        tensors.insert(name, (dtype, t.shape, t.bytes.into_owned()));
    };
    for r in &session.plan().results {
        // Outputs may be stored in 16 bits, which f32 holds exactly.
        let t = session.result(&r.name)?;
        let wide = matches!(t.element, Element::Plan(d) if d.is_real());
        add(r.name.clone(), if wide { HostTensor::from_f32(&t.shape, &t.to_f32()) } else { t });
    }
    for t in &session.plan().tensors {
        if let Storage::Persistent { role, .. } = t.storage
            && role != precast_plan::Role::Constant
        {
            add(format!("state.{}", t.name), session.read(&t.name)?);
        }
    }
    write_tensors(&args.out, &BTreeMap::new(), &tensors)?;
    let batches = session.plan().accumulate;
    if json {
        say!(
            "{}",
            json!({ "ok": true, "loss": report.loss, "counted": report.counted, "batches": batches,
            "out": args.out })
        );
    } else {
        say!("loss {}", report.loss);
        if batches > 1 {
            say!("of {batches} batches, as the gradients are; outputs are those of the last");
        }
        say!("saved {}: {} tensors", args.out.display(), tensors.len());
    }
    Ok(())
}
