//! Time by kernel: measured beside predicted.

use crate::layers::Names;
use crate::listing::{duration, percent, uncalibrated};
use indexmap::IndexMap;
use precast_plan::{ConvKind, Kernel, Plan, Step};
use precast_runtime::{KernelTime, Phase, Session};
use serde::Serialize;
use std::fmt::Write;

/// What a step of training spends on something, in the mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spent {
    pub name: String,
    pub kernels: usize,
    pub measured_ns: f64,
    pub predicted_ns: f64,
}

/// Where the time of a step goes; each list by what was measured, the most first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Runs of every kernel of the forward and backward pass that were timed.
    pub runs: u64,
    pub measured_ns: f64,
    pub predicted_ns: f64,
    pub families: Vec<Spent>,
    pub layers: Vec<Spent>,
    pub kernels: Vec<Spent>,
}

/// What kernels of a kind are called.
fn family(kernel: &Kernel) -> &'static str {
    match kernel {
        Kernel::Rows(_) => "elementwise and reductions",
        Kernel::Gemm(_) => "matrix products",
        Kernel::Conv(c) => match c.kind {
            ConvKind::Forward => "convolutions",
            ConvKind::DataGrad => "convolutions, data gradient",
            ConvKind::FilterGrad => "convolutions, filter gradient",
        },
        Kernel::Attention(_) => "attention",
        Kernel::AttentionGrad(_) => "attention, gradient",
        Kernel::Recurrence(_) => "recurrences",
        Kernel::RecurrenceGrad(_) => "recurrences, gradient",
        Kernel::MaxPool(_) | Kernel::MaxPoolGrad(_) => "pools",
        Kernel::Gather(_) | Kernel::ScatterAdd(_) | Kernel::LastIndex(_) => "gathers and scatters",
        Kernel::CumSum(_) | Kernel::TopK(_) => "scans and sorts",
    }
}

/// What was timed since [`Session::time_kernels`]; `None` where nothing ran.
pub fn profile(session: &Session) -> Option<Profile> {
    let plan = session.plan();
    let micro = session.kernel_times(Phase::Micro);
    let update = session.kernel_times(Phase::Update);
    let runs = micro.iter().chain(update).map(|t| t.runs).max().filter(|n| *n > 0)?;
    Some(of(plan, runs, micro, update))
}

fn of(plan: &Plan, runs: u64, micro: &[KernelTime], update: &[KernelTime]) -> Profile {
    let names = Names::of(plan);
    let batches = f64::from(plan.accumulate.max(1));
    let all = plan.micro.iter().zip(micro).map(|k| (k, batches));
    let all = all.chain(plan.update.iter().zip(update).map(|k| (k, 1.0)));
    let mut lists: [IndexMap<String, Spent>; 3] = Default::default();
    let (mut measured, mut predicted) = (0.0, 0.0);
    for ((step, time), times) in all {
        let (m, p) = (1e9 * time.mean() * times, step.predicted_ns * times);
        measured += m;
        predicted += p;
        let owners = [family(&step.kernel).into(), layer(&names, step), step.name.clone()];
        for (list, name) in lists.iter_mut().zip(owners) {
            let none =
                Spent { name: name.clone(), kernels: 0, measured_ns: 0.0, predicted_ns: 0.0 };
            let spent = list.entry(name).or_insert(none);
            spent.kernels += 1;
            spent.measured_ns += m;
            spent.predicted_ns += p;
        }
    }
    let [families, layers, kernels] = lists.map(|list| {
        let mut list: Vec<Spent> = list.into_values().collect();
        list.sort_by(|a, b| b.measured_ns.total_cmp(&a.measured_ns));
        list
    });
    Profile { runs, measured_ns: measured, predicted_ns: predicted, families, layers, kernels }
}

/// The layer of the first operation that a kernel computes.
fn layer(names: &Names, step: &Step) -> String {
    names.layer(step.ops.first().unwrap_or(&step.name))
}

/// The profile for people.
pub fn text(plan: &Plan, profile: &Profile) -> String {
    let mut out = String::new();
    let table = uncalibrated(plan).map_or(String::new(), |why| format!(" ({why})"));
    writeln!(
        out,
        "profile     {} a step in kernels over {} runs, {} predicted{table}",
        duration(profile.measured_ns),
        profile.runs,
        duration(profile.predicted_ns),
    )
    .expect("writing to a String");
    for (head, list) in
        [("kind", &profile.families), ("layer", &profile.layers), ("kernel", &profile.kernels)]
    {
        let width = list.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).clamp(6, 48);
        writeln!(
            out,
            "\n{head:width$}  {:>9}  {:>7}  {:>9}  {:>5}  kernels",
            "measured", "share", "predicted", "ratio"
        )
        .expect("writing to a String");
        for s in list {
            let share = percent(s.measured_ns / profile.measured_ns.max(f64::MIN_POSITIVE));
            let ratio = match s.predicted_ns > 0.0 {
                true => format!("{:.2}", s.measured_ns / s.predicted_ns),
                false => "–".into(),
            };
            writeln!(
                out,
                "{:width$}  {:>9}  {share:>7}  {:>9}  {ratio:>5}  {}",
                s.name,
                duration(s.measured_ns),
                duration(s.predicted_ns),
                s.kernels
            )
            .expect("writing to a String");
        }
    }
    out
}
