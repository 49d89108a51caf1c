//! `precast grad`: one step, everything it computed, for comparing with another framework.

use crate::blame::Replay;
use crate::failure::{self, Failure, Outcome};
use crate::output::{can_write, quiet};
use crate::recipe_args::{self, RecipeArgs, compile, compile_quietly, open, open_data};
use precast_plan::Storage;
use precast_runtime::tensors::{Element, HostTensor, TensorTable, write_tensors};
use precast_runtime::{Error, StepReport};
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
    can_write(&args.out)?;
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
    let fault = judge(&report, &tensors).map(|text| {
        let first = first(args).map_or(String::new(), |s| format!("; {s}"));
        Error::new("R0609", text + &first).help(
            "`precast blame --step 1` says how many elements were not finite first, and in which batch",
        )
    });
    if json {
        let errors: Vec<_> = fault.iter().map(failure::error).collect();
        say!(
            "{}",
            json!({ "ok": fault.is_none(), "loss": report.loss, "counted": report.counted,
            "batches": batches, "out": args.out, "errors": errors })
        );
    } else if !quiet() {
        say!("loss {}", report.loss);
        if batches > 1 {
            say!("of {batches} batches, as the gradients are; outputs are those of the last");
        }
        say!("saved {}: {} tensors", args.out.display(), tensors.len());
    }
    fault.map_or(Ok(()), |e| Err(Failure::Training(e)))
}

/// What is wrong with what was computed: as in training, a loss without targets is not.
fn judge(report: &StepReport, tensors: &TensorTable) -> Option<String> {
    let grads: Vec<_> = tensors.iter().filter(|t| t.0.starts_with("grad.")).collect();
    let mut bad = grads.iter().filter_map(|(name, (dtype, shape, bytes))| {
        let element = Element::Plan(*dtype);
        let t = HostTensor { element, shape: shape.clone(), bytes: bytes.into() };
        let bad = t.to_f32().iter().filter(|x| !x.is_finite()).count();
        (bad > 0).then(|| format!("{bad} of the {} elements of `{name}`", t.elements()))
    });
    if let Some(first) = bad.next() {
        let all = bad.count() + 1;
        return Some(match grads.len() {
            1 => format!("{first} are not finite"),
            n => match all {
                1 => format!(
                    "{first} are not finite, and those of the {} other gradients are",
                    n - 1
                ),
                _ => format!(
                    "{first} are not finite, and some of {} other gradients of {n}",
                    all - 1
                ),
            },
        });
    }
    if report.loss.is_finite() || report.counted == Some(0.0) {
        return None;
    }
    Some(format!("the loss is {}, though its gradients are finite", report.loss))
}

/// The operation that made the first number that is not finite, where a replay of the step finds one.
fn first(args: &Args) -> Option<String> {
    let recipe = args.recipe.load().ok()?;
    let data = open_data(&recipe).ok()?;
    let options = args.recipe.options(false);
    let plan = compile_quietly(&recipe, &options).ok()?.plan;
    let (session, data) = open(&recipe, plan, data, args.threads).ok()?;
    let before = data.state();
    let (_, blame) =
        Replay::new(recipe, options, args.threads).step(&session, 1, None, &before).ok()?;
    blame.map(|b| b.sentence())
}
