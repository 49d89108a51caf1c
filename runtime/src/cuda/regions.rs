//! Where a plan's memory lies on a GPU.

use super::blas::Blas;
use super::driver::{Context, Memory, Stream};
use super::graphs::Graphs;
use super::launch::{Arg, Place, Table};
use super::lower::LoweredPlan;
use super::staging::Inbound;
use crate::error::{Error, Result};
use precast_plan::units;
use precast_plan::{Plan, Storage, TensorId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the regions of a plan lie on the device.
pub struct Regions {
    pub arena: Memory,
    pub persistent: Memory,
    pub inputs: Memory,
    pub scratch: Memory,
    /// Of cuDNN's graphs.
    pub workspace: Memory,
    /// Tables, then the fault word.
    pub tables: Memory,
}

/// Region, offset in it and bytes of every tensor.
pub struct Places(pub Vec<(Region, u64, u64)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    Arena,
    Persistent,
    Inputs,
}

impl Places {
    pub fn new(plan: &Plan) -> Places {
        let place = |t: &precast_plan::Tensor| {
            let bytes = t.shape.iter().product::<u64>() * t.dtype.size() as u64;
            match t.storage {
                Storage::Arena { offset } => (Region::Arena, offset, bytes),
                Storage::Persistent { offset, .. } => (Region::Persistent, offset, bytes),
                Storage::Input { offset } => (Region::Inputs, offset, bytes),
            }
        };
        Places(plan.tensors.iter().map(place).collect())
    }

    pub fn input_bytes(&self) -> u64 {
        let inputs = self.0.iter().filter(|p| p.0 == Region::Inputs);
        inputs.map(|p| p.1 + p.2).max().unwrap_or(0)
    }

    /// An address with the alignment that `place` will have: regions begin at multiples of 256.
    pub fn offset(&self, place: Place) -> u64 {
        const BASE: u64 = 1 << 32;
        BASE + match place {
            Place::Tensor { tensor, offset } => self.0[tensor as usize].1 + offset,
            Place::Scratch { offset } => offset,
        }
    }
}

impl Regions {
    pub fn tensor(&self, places: &Places, tensor: TensorId) -> u64 {
        let (region, offset, _) = places.0[tensor as usize];
        offset
            + match region {
                Region::Arena => self.arena.address,
                Region::Persistent => self.persistent.address,
                Region::Inputs => self.inputs.address,
            }
    }

    pub fn place(&self, places: &Places, place: Place) -> u64 {
        match place {
            Place::Tensor { tensor, offset } => self.tensor(places, tensor) + offset,
            Place::Scratch { offset } => self.scratch.address + offset,
        }
    }
}

/// Bytes of device memory, by what they are for.
pub struct Needs {
    arena: u64,
    persistent: u64,
    inputs: u64,
    scratch: u64,
    pub workspace: u64,
}

/// Bytes of workspace that one graph of cuDNN may want on a device of `memory` bytes in all: a power
/// of two, at most half of what the plan and a sixteenth of the memory leave. The sixteenth is for the
/// driver's context, compiled kernels and what libraries keep; half of the rest, since scratch memory
/// of other kernels is not known yet. How much is free in the moment counts nothing, so that the
/// engines that are measured are the same in each run; and a power of two is the same for many plans,
/// which then share what was measured.
pub fn workspace_limit(plan: &Plan, memory: u64) -> u64 {
    let batches = 3 * Places::new(plan).input_bytes();
    let taken = plan.arena_bytes + plan.persistent_bytes + batches + Blas::overhead() + memory / 16;
    let half = memory.saturating_sub(taken) / 2;
    half.checked_ilog2().map_or(0, |bits| 1 << bits)
}

/// Memory of the regions of a plan.
pub enum Allocated {
    All(Box<(Regions, Inbound)>),
    /// The workspace of cuDNN's graphs alone is too much: as many bytes are free for it.
    ButWorkspace(u64),
}

impl Needs {
    pub fn of(plan: &Plan, places: &Places, lowered: &LoweredPlan, graphs: &Graphs) -> Needs {
        Needs {
            arena: plan.arena_bytes,
            persistent: plan.persistent_bytes,
            inputs: places.input_bytes(),
            scratch: lowered.scratch,
            workspace: graphs.workspace(),
        }
    }

    pub fn total(&self) -> u64 {
        // The batch lies where kernels read it and in the two buffers of its way in.
        let tensors = self.arena + self.persistent + 3 * self.inputs;
        tensors + self.scratch + self.workspace + Blas::overhead()
    }

    /// # Errors
    /// `R0708` where memory is short even without the workspace, or there is none.
    pub fn allocate(&self, context: &Arc<Context>, lowered: &LoweredPlan) -> Result<Allocated> {
        let all = || -> Result<Option<Allocated>> {
            macro_rules! memory {
                ($bytes:expr) => {
                    match Memory::new(context, $bytes)? {
                        Some(memory) => memory,
                        None => return Ok(None),
                    }
                };
            }
            let (arena, persistent) = (memory!(self.arena), memory!(self.persistent));
            let (inputs, scratch) = (memory!(self.inputs), memory!(self.scratch));
            let tables = memory!(Tables::new(lowered).bytes + 8);
            let Some(inbound) = Inbound::new(context, self.inputs)? else { return Ok(None) };
            // Last, so that it is known what is left for it.
            let Some(workspace) = Memory::new(context, self.workspace)? else {
                return Ok(Some(Allocated::ButWorkspace(context.memory()?.0)));
            };
            let regions = Regions { arena, persistent, inputs, scratch, workspace, tables };
            Ok(Some(Allocated::All(Box::new((regions, inbound)))))
        };
        let free = context.memory()?.0;
        all()?.ok_or_else(|| self.too_much(context, free))
    }

    /// The error where so many bytes are free.
    pub fn too_much(&self, context: &Context, free: u64) -> Error {
        let gib = units::bytes;
        let text = format!(
            "the plan needs {} of device memory, and {} are free: activations {}, weights and optimizer state {}, batches {}, workspaces {}",
            gib(self.total()),
            gib(free),
            gib(self.arena),
            gib(self.persistent),
            gib(3 * self.inputs),
            gib(self.scratch + self.workspace + Blas::overhead())
        );
        Error::new("R0708", text)
            .at(format!("cuda:{} {}", context.info.ordinal, context.info.name))
            .help("a smaller batch needs less; other programs may hold memory of the device")
    }
}

/// Constant bytes of all launches, equal ones once.
pub struct Tables {
    pub offsets: BTreeMap<Arc<Table>, u64>,
    pub bytes: u64,
}

impl Tables {
    pub fn new(lowered: &LoweredPlan) -> Tables {
        let mut tables = Tables { offsets: BTreeMap::new(), bytes: 0 };
        for arg in lowered.launches().flat_map(|l| &l.args) {
            if let Arg::Table(table) = arg
                && !tables.offsets.contains_key(table)
            {
                tables.offsets.insert(table.clone(), tables.bytes);
                tables.bytes = (tables.bytes + table.bytes.len() as u64).next_multiple_of(256);
            }
        }
        tables
    }

    /// Writes the tables, with the addresses of tensors patched in.
    pub fn upload(
        &self,
        stream: &Stream,
        base: u64,
        tensor: &dyn Fn(TensorId) -> u64,
    ) -> Result<()> {
        let mut all = vec![0; self.bytes as usize];
        for (table, &offset) in &self.offsets {
            let at = offset as usize;
            all[at..at + table.bytes.len()].copy_from_slice(&table.bytes);
            for &(within, id, plus) in &table.addresses {
                let at = at + within as usize;
                all[at..at + 8].copy_from_slice(&(tensor(id) + plus).to_le_bytes());
            }
        }
        stream.upload(base, &all)?;
        stream.synchronise()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use precast_plan::{Summary, TargetSummary, VERSION};

    #[test]
    fn a_workspace_leaves_room_for_the_plan() {
        let plan = |arena_bytes| Plan {
            version: VERSION,
            model: "none".into(),
            target: TargetSummary { name: "sm_90".into(), device: "cuda".into() },
            tensors: vec![],
            programs: vec![],
            micro: vec![],
            update: vec![],
            eval: vec![],
            accumulate: 1,
            arena_bytes,
            arena_bound_bytes: 0,
            persistent_bytes: 1 << 30,
            results: vec![],
            eval_results: vec![],
            classes: vec![],
            summary: Summary::default(),
            journal: vec![],
        };
        let limit = |gib: u64, memory: u64| workspace_limit(&plan(gib << 30), memory << 30) >> 20;
        // An H200 has 140 GiB: GPT-2 small at a batch of 64 wants 1.5 GiB for the order of its sums.
        assert_eq!(limit(30, 140), 32 << 10);
        assert_eq!(limit(100, 140), 8 << 10);
        // 24 GiB less 1.5, 1 and 12: half of 9.5 and a little less.
        assert_eq!(limit(12, 24), 4 << 10);
        assert_eq!(limit(20, 24), 512);
        // Nothing is left.
        assert_eq!([limit(22, 24), limit(23, 24), limit(200, 24)], [0; 3]);
    }
}
