//! `precast diff`: what changed between two plans, in words.

use crate::failure::Outcome;
use crate::input;
use crate::listing::{bytes, duration, peak_bytes};
use precast_compiler::precision::casts::is_cast;
use precast_plan::{Plan, Step};
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

/// Say what differs between two plans: formats, casts, kernels, predicted time and memory.
#[derive(clap::Args)]
pub struct Args {
    /// The plan before (.plan).
    before: PathBuf,
    /// The plan after (.plan).
    after: PathBuf,
}

/// What changed, by the names of operations.
#[derive(Debug, Default, Serialize)]
struct Diff {
    /// Operations of both plans whose formats differ.
    formats: Vec<Changed>,
    /// Casts of one plan alone, by name and formats.
    casts_added: Vec<Cast>,
    casts_removed: Vec<Cast>,
    /// Operations that one plan alone has, casts aside.
    operations_added: Vec<String>,
    operations_removed: Vec<String>,
    /// Kernels of the plan after that do the work of several kernels before.
    fused: Vec<Kernels>,
    /// Kernels of the plan before whose work several kernels do after.
    split: Vec<Kernels>,
    kernels: [usize; 2],
    predicted_ns: [f64; 2],
    peak_bytes: [u64; 2],
    /// Policies or targets, where they differ.
    conditions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Changed {
    op: String,
    before: String,
    after: String,
    /// Why it is so in the plan after.
    reason: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Cast {
    name: String,
    formats: String,
}

/// One kernel of one plan and those of the other that do the same work.
#[derive(Debug, Serialize)]
struct Kernels {
    one: String,
    several: Vec<String>,
}

pub fn run(args: &Args, as_json: bool) -> Outcome {
    let (before, after) = (input::read_plan(&args.before)?, input::read_plan(&args.after)?);
    let d = diff(&before, &after);
    if as_json {
        say!("{}", json!({ "ok": true, "diff": d }));
    } else {
        put!("{}", words(&d));
    }
    Ok(())
}

/// Casts of a plan's journal: name to formats.
fn casts(plan: &Plan) -> BTreeMap<&str, &str> {
    let cast = plan.journal.iter().filter(|d| is_cast(d));
    cast.map(|d| (d.op.as_str(), d.chosen.as_str())).collect()
}

fn diff(before: &Plan, after: &Plan) -> Diff {
    let decisions = |p: &Plan| -> BTreeMap<String, (String, String)> {
        let plain = p.journal.iter().filter(|d| !is_cast(d));
        plain.map(|d| (d.op.clone(), (d.chosen.clone(), d.reason.clone()))).collect()
    };
    let (a, b) = (decisions(before), decisions(after));
    let mut d = Diff {
        kernels: [before, after].map(|p| p.micro.len() + p.update.len()),
        predicted_ns: [before, after].map(|p| p.summary.predicted_ns),
        peak_bytes: [before, after].map(peak_bytes),
        ..Diff::default()
    };
    for (what, x, y) in [
        ("model", &before.model, &after.model),
        ("target", &before.target.name, &after.target.name),
        ("policy", &before.summary.policy, &after.summary.policy),
    ] {
        if x != y {
            d.conditions.push(format!("{what} {x} became {y}"));
        }
    }
    for (op, (formats, reason)) in &b {
        match a.get(op) {
            Some((old, _)) if old != formats => d.formats.push(Changed {
                op: op.clone(),
                before: old.clone(),
                after: formats.clone(),
                reason: reason.clone(),
            }),
            Some(_) => {}
            None => d.operations_added.push(op.clone()),
        }
    }
    d.operations_removed = a.keys().filter(|op| !b.contains_key(*op)).cloned().collect();
    let (x, y) = (casts(before), casts(after));
    let only = |p: &BTreeMap<&str, &str>, q: &BTreeMap<&str, &str>| -> Vec<Cast> {
        let alone = p.iter().filter(|(name, formats)| q.get(*name) != Some(formats));
        alone
            .map(|(name, formats)| Cast { name: name.to_string(), formats: formats.to_string() })
            .collect()
    };
    (d.casts_added, d.casts_removed) = (only(&y, &x), only(&x, &y));
    d.fused = joined(before, after);
    d.split = joined(after, before);
    d
}

/// Kernels of `whole` that compute operations which several kernels of `parts` compute.
fn joined(parts: &Plan, whole: &Plan) -> Vec<Kernels> {
    let steps = |p: &Plan| -> Vec<Step> { p.micro.iter().chain(&p.update).cloned().collect() };
    let mut at: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let parts = steps(parts);
    for (i, s) in parts.iter().enumerate() {
        s.ops.iter().for_each(|op| at.entry(op.clone()).or_default().push(i));
    }
    let mut out = vec![];
    for s in steps(whole) {
        let places: BTreeSet<usize> =
            s.ops.iter().filter_map(|op| at.get(op)?.first()).copied().collect();
        if places.len() > 1 {
            let several = places.iter().map(|&i| parts[i].name.clone()).collect();
            out.push(Kernels { one: s.name.clone(), several });
        }
    }
    out
}

/// `12.3 % less`
fn change([a, b]: [f64; 2]) -> String {
    let share = (b / a - 1.0) * 100.0;
    match share {
        s if !s.is_finite() || s.abs() < 0.05 => "as before".into(),
        s if s < 0.0 => format!("{:.1} % less", -s),
        s => format!("{s:.1} % more"),
    }
}

fn words(d: &Diff) -> String {
    let mut out = String::new();
    write_words(&mut out, d).expect("writing to a String");
    out
}

fn write_words(out: &mut String, d: &Diff) -> std::fmt::Result {
    for c in &d.conditions {
        writeln!(out, "{c}")?;
    }
    let [a, b] = d.predicted_ns;
    writeln!(out, "time    {} became {}: {}", duration(a), duration(b), change([a, b]))?;
    let [a, b] = d.peak_bytes;
    let memory = change([a as f64, b as f64]);
    writeln!(out, "memory  {} became {}: {memory}", bytes(a), bytes(b))?;
    writeln!(out, "kernels {} became {}", d.kernels[0], d.kernels[1])?;
    let mut list = |head: &str, lines: Vec<String>| -> std::fmt::Result {
        if lines.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n{head} ({})", lines.len())?;
        lines.iter().try_for_each(|l| writeln!(out, "  {l}"))
    };
    let formats = d.formats.iter();
    list(
        "formats that changed",
        formats
            .map(|c| format!("{}: {} became {}, {}", c.op, c.before, c.after, c.reason))
            .collect(),
    )?;
    let cast = |list: &[Cast]| -> Vec<String> {
        list.iter().map(|c| format!("{} ({})", c.name, c.formats)).collect()
    };
    list("casts added", cast(&d.casts_added))?;
    list("casts removed", cast(&d.casts_removed))?;
    list("operations added", d.operations_added.clone())?;
    list("operations removed", d.operations_removed.clone())?;
    let kernels = |list: &[Kernels]| -> Vec<String> {
        list.iter().map(|k| format!("{} = {}", k.one, k.several.join(" + "))).collect()
    };
    list("kernels fused", kernels(&d.fused))?;
    list("kernels split", kernels(&d.split))?;
    if d.formats.is_empty()
        && d.casts_added.is_empty()
        && d.casts_removed.is_empty()
        && d.operations_added.is_empty()
        && d.operations_removed.is_empty()
        && d.fused.is_empty()
        && d.split.is_empty()
    {
        writeln!(out, "\nthe same operations in the same formats and kernels")?;
    }
    Ok(())
}
