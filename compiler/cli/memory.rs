//! What a run takes of this machine's memory at most.

use crate::listing::bytes;
use precast_plan::{Plan, Role, Storage};
use precast_runtime::Session;
use precast_runtime::data::Dataset;
use serde::Serialize;

/// Bytes, each part the most it can be. What a part says is in `docs/CLI.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Temporaries, weights and state, inputs: as the plan lays them out.
    pub tensors: u64,
    /// What kernels work in beside them.
    pub scratch: u64,
    /// What threads work in, and their stacks.
    pub threads: u64,
    /// Rows in memory, orders of rows, batches.
    pub data: u64,
    /// What is copied to be written, read or tested: all that a checkpoint holds, twice, the plan's text,
    /// and the outputs of a test.
    pub copies: u64,
    /// What the process took without the above: the program, its libraries, what compiling left.
    pub program: u64,
    /// The most that the process had taken when all was loaded, compiling included.
    pub before: u64,
}

impl Memory {
    /// Of a session whose data is bound, before its first step; `None` where a device has memory of its
    /// own or the system does not say what a process takes.
    pub fn of(session: &Session, data: &Dataset) -> Option<Memory> {
        let held = session.held()?;
        let (resident, before) = process()?;
        let (plan, data) = (session.plan(), data.bytes());
        let largest = kept(plan).map(size).max().unwrap_or(0);
        let copies = 2 * written(plan) + 2 * largest + plan_text(plan) + tested(plan);
        // Of the parts, what has been touched by now is what has first values, and data.
        let program = resident.saturating_sub(data.held + kept(plan).map(size).sum::<u64>());
        Some(Memory {
            tensors: held.tensors,
            scratch: held.scratch,
            threads: held.threads,
            data: data.held + data.drawn,
            copies,
            program,
            before,
        })
    }

    /// All but the program itself.
    pub fn at_most(&self) -> u64 {
        self.tensors + self.scratch + self.threads + self.data + self.copies
    }

    /// What the process takes at its peak, at most.
    pub fn process_at_most(&self) -> u64 {
        (self.at_most() + self.program).max(self.before)
    }

    /// For a summary, without its head.
    pub fn text(&self) -> String {
        format!(
            "{} at most: {} tensors, {} scratch, {} threads, {} data, {} copies; beside {} \
             of the program",
            bytes(self.at_most()),
            bytes(self.tensors),
            bytes(self.scratch),
            bytes(self.threads),
            bytes(self.data),
            bytes(self.copies),
            bytes(self.program),
        )
    }
}

/// Gives back to the system what was freed: what compiling left would otherwise be taken for the
/// program's own.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: releases pages that no allocation uses.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of physical memory that this process takes now and has taken at most.
fn process() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

fn size(t: &precast_plan::Tensor) -> u64 {
    t.shape.iter().product::<u64>() * t.dtype.size() as u64
}

/// Tensors that outlive a step, all of which have been written by now.
fn kept(plan: &Plan) -> impl Iterator<Item = &precast_plan::Tensor> {
    plan.tensors.iter().filter(|t| matches!(t.storage, Storage::Persistent { .. }))
}

/// What a checkpoint holds.
fn written(plan: &Plan) -> u64 {
    let saved = |t: &&precast_plan::Tensor| match t.storage {
        Storage::Persistent { role, .. } => !matches!(role, Role::Constant | Role::WeightCopy),
        _ => false,
    };
    plan.tensors.iter().filter(saved).map(size).sum()
}

/// The plan as it is saved, and while it is made into text.
fn plan_text(plan: &Plan) -> u64 {
    4 * plan.to_json().len() as u64
}

/// Outputs of a test and its targets, as they are and in f64, of the widest batch.
fn tested(plan: &Plan) -> u64 {
    let outputs = plan.eval_results.iter().map(|r| &plan.tensors[r.tensor as usize]);
    let inputs = plan.tensors.iter().filter(|t| matches!(t.storage, Storage::Input { .. }));
    let elements = outputs.chain(inputs).map(|t| t.shape.iter().product::<u64>());
    elements.sum::<u64>() * 24
}
