//! A plan for people.

pub use precast_plan::units::{bytes, percent, time as duration};
use precast_plan::{Plan, Role, Storage, Target};
use std::fmt::{self, Write};

/// Why predictions for a plan are no measurement of the machine it runs on; `None` where they are priced
/// by a table that somebody measured.
pub fn uncalibrated(plan: &Plan) -> Option<String> {
    let name = &plan.target.name;
    let shipped = Target::shipped(name)?;
    Some(match shipped.device.as_str() {
        "cpu" => format!("{name} describes another machine: `precast calibrate` measures this one"),
        _ => format!("{name} is described by its data sheet and was never calibrated"),
    })
}

/// Bytes that a plan's tensors need at most: arena, persistent tensors and inputs.
pub fn peak_bytes(plan: &Plan) -> u64 {
    plan.arena_bytes + plan.persistent_bytes + input_bytes(plan)
}

fn input_bytes(plan: &Plan) -> u64 {
    let inputs = plan.tensors.iter().filter(|t| matches!(t.storage, Storage::Input { .. }));
    inputs.map(|t| t.shape.iter().product::<u64>() * t.dtype.size() as u64).sum()
}

/// Names and numbers that fit on a screen.
pub fn summary(plan: &Plan) -> String {
    let mut out = String::new();
    write_summary(&mut out, plan).expect("writing to a String");
    out
}

fn write_summary(out: &mut String, plan: &Plan) -> fmt::Result {
    let s = &plan.summary;
    let parameters: u64 = plan
        .tensors
        .iter()
        .filter(|t| matches!(t.storage, Storage::Persistent { role: Role::Parameter, .. }))
        .map(|t| t.shape.iter().product::<u64>())
        .sum();
    let (model, target) = (&plan.model, &plan.target.name);
    writeln!(out, "plan        {model} on {target}, policy {}", s.policy)?;
    writeln!(out, "parameters  {parameters} (f32 masters)")?;
    let products: Vec<String> = s
        .product_flops
        .iter()
        .map(|(dtype, share)| format!("{:.0}% {dtype}", share * 100.0))
        .collect();
    let products = if products.is_empty() { "none".into() } else { products.join(", ") };
    writeln!(out, "products    {products}")?;
    writeln!(out, "casts       {} of {} elements", s.casts, s.cast_elements)?;
    writeln!(out, "loss scale  {}", if s.scaled { "yes" } else { "no" })?;
    let time = duration(s.predicted_ns);
    let steps = plan.micro.len() + plan.update.len();
    writeln!(out, "step        {time} predicted, {steps} kernels")?;
    if let Some(why) = uncalibrated(plan) {
        writeln!(out, "            {why}")?;
    }
    if let Some(b) = &s.bound {
        let gap = percent(b.gap(s.predicted_ns));
        let open = match b.open {
            0 => String::new(),
            n => format!("; {n} other ways to compute a tensor are not covered"),
        };
        writeln!(out, "bound       {}, the plan is {gap} above it{open}", duration(b.ns))?;
    }
    writeln!(
        out,
        "tensors     {} at most: {} temporaries (bound {}), {} persistent, {} inputs",
        bytes(peak_bytes(plan)),
        bytes(plan.arena_bytes),
        bytes(plan.arena_bound_bytes),
        bytes(plan.persistent_bytes),
        bytes(input_bytes(plan)),
    )?;
    writeln!(out, "choice      {}", s.choice)?;
    for c in &s.candidates {
        let time = if c.legal { duration(c.predicted_ns) } else { "not legal".into() };
        let note = if c.note.is_empty() { String::new() } else { format!("  {}", c.note) };
        writeln!(out, "            {:6} {time:>9}{note}", c.name)?;
    }
    Ok(())
}
