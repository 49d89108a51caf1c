//! `precast explain`: why every operation runs as it does.

use crate::failure::Outcome;
use crate::input;
use crate::layers;
use crate::listing::{self, duration};
use precast_compiler::ops::matmul::source_name;
use precast_compiler::precision::casts::is_cast;
use precast_compiler::{Diagnostic, Place};
use precast_plan::{Decision, Plan};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Say which precision an operation runs in, why, and what the alternatives would have cost.
#[derive(clap::Args)]
pub struct Args {
    /// A plan (.plan).
    plan: PathBuf,
    /// An operation, by its name or a glob over names; without it, all of them, briefly.
    node: Option<String>,
    /// Every cast: who asked for it, what it costs, and what the step would cost without it.
    #[arg(long, conflicts_with = "node")]
    casts: bool,
    /// In the order in which they run, instead of the most expensive first.
    #[arg(long)]
    in_order: bool,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let plan = input::read_plan(&args.plan)?;
    let mut chosen: Vec<&Decision> = match &args.node {
        None if args.casts => plan.journal.iter().filter(|d| is_cast(d)).collect(),
        None => plan.journal.iter().filter(|d| json || !is_cast(d)).collect(),
        Some(node) => select(&plan, node, &args.plan)?,
    };
    if json {
        // For programs, which sort for themselves.
        let layers = layers::layers(&plan);
        say!(
            "{}",
            json!({ "ok": true, "summary": plan.summary, "layers": layers, "decisions": chosen })
        );
        return Ok(());
    }
    if !args.in_order {
        chosen.sort_by(|a, b| b.cost_ns.total_cmp(&a.cost_ns));
    }
    if args.casts && chosen.is_empty() {
        say!("the plan has no casts");
    } else if args.node.is_some() || args.casts {
        for (i, d) in chosen.iter().enumerate() {
            put!("{}{}", if i > 0 { "\n" } else { "" }, details(d));
        }
    } else {
        put!("{}\nlayers\n{}", listing::summary(&plan), layers::table(&plan));
        put!("\noperations\n{}", table(&chosen));
    }
    Ok(())
}

fn select<'p>(plan: &'p Plan, node: &str, path: &std::path::Path) -> Outcome<Vec<&'p Decision>> {
    // A name may hold characters that mean something in a glob, so the exact name goes first.
    let own = |d: &Decision| source_name(&d.op) == node;
    let exact: Vec<_> = plan.journal.iter().filter(|d| d.op == node || own(d)).collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    let glob = globset::Glob::new(node)
        .map_err(|e| {
            Diagnostic::error("P0005", format!("`{node}` is not a glob: {}", e.kind()))
                .at(Place::File { path: path.into() })
                .help("in a glob `*`, `?`, `[…]` and `{a,b}` stand for others; `[*]` is the character itself")
        })?
        .compile_matcher();
    let found: Vec<_> = {
        let matches = |d: &&Decision| glob.is_match(&d.op) || glob.is_match(source_name(&d.op));
        plan.journal.iter().filter(matches).collect()
    };
    if !found.is_empty() {
        return Ok(found);
    }
    let names = plan.journal.iter().flat_map(|d| [d.op.as_str(), source_name(&d.op)]);
    let otherwise = "without a name, `explain` lists the operations; a glob such as `*conv*` names \
                     several";
    let help = input::instead_of_name(node, names, otherwise);
    Err(Diagnostic::error("P0005", format!("the plan decides nothing about `{node}`"))
        .at(Place::File { path: path.into() })
        .help(help)
        .into())
}

/// One operation with its alternatives.
fn details(d: &Decision) -> String {
    let mut out = String::new();
    write!(out, "{}\n  {}, {}\n  because {}\n", d.op, d.chosen, duration(d.cost_ns), d.reason)
        .expect("writing to a String");
    for r in &d.rejected {
        let price = match r.extra_ns {
            None if is_cast(d) => "not possible".into(),
            None => "not legal".into(),
            Some(ns) if ns < 0.0 => format!("−{}", duration(-ns)),
            Some(ns) => format!("+{}", duration(ns)),
        };
        writeln!(out, "  not {}: {price}, {}", r.what, r.why).expect("writing to a String");
    }
    out
}

/// One line an operation.
fn table(decisions: &[&Decision]) -> String {
    let width = |get: &dyn Fn(&Decision) -> usize| {
        decisions.iter().map(|d| get(d)).max().unwrap_or(0).min(48)
    };
    let (op, chosen) = (width(&|d| d.op.len()), width(&|d| d.chosen.len()));
    let mut out = String::new();
    for d in decisions {
        let cost = duration(d.cost_ns);
        writeln!(out, "{:op$}  {:chosen$}  {cost:>9}  {}", d.op, d.chosen, d.reason)
            .expect("writing to a String");
    }
    out
}
