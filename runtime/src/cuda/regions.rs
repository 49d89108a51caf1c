//! Where a plan's memory lies on a GPU.

use super::blas::Blas;
use super::driver::{Context, Memory, Stream, gibibytes};
use super::graphs::Graphs;
use super::launch::{Arg, Place, Table};
use super::lower::LoweredPlan;
use super::staging::Inbound;
use crate::error::{Error, Result};
use precast_plan::{Plan, Storage, TensorId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the regions of a plan lie on the device.
pub struct Regions {
    pub arena: Memory,
    pub persistent: Memory,
    pub inputs: Memory,
    pub scratch: Memory,
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
}

impl Needs {
    pub fn of(plan: &Plan, places: &Places, lowered: &LoweredPlan, graphs: &Graphs) -> Needs {
        Needs {
            arena: plan.arena_bytes,
            persistent: plan.persistent_bytes,
            inputs: places.input_bytes(),
            scratch: lowered.scratch + graphs.workspace(),
        }
    }

    pub fn total(&self) -> u64 {
        // The batch lies where kernels read it and in the two buffers of its way in.
        self.arena + self.persistent + 3 * self.inputs + self.scratch + Blas::overhead()
    }

    pub fn allocate(
        &self,
        context: &Arc<Context>,
        lowered: &LoweredPlan,
    ) -> Result<(Regions, Inbound)> {
        let all = || -> Result<Option<(Regions, Inbound)>> {
            macro_rules! memory {
                ($bytes:expr) => {
                    match Memory::new(context, $bytes)? {
                        Some(memory) => memory,
                        None => return Ok(None),
                    }
                };
            }
            let regions = Regions {
                arena: memory!(self.arena),
                persistent: memory!(self.persistent),
                inputs: memory!(self.inputs),
                scratch: memory!(self.scratch),
                tables: memory!(Tables::new(lowered).bytes + 8),
            };
            Ok(Inbound::new(context, self.inputs)?.map(|inbound| (regions, inbound)))
        };
        let free = context.memory()?.0;
        all()?.ok_or_else(|| {
            let gib = gibibytes;
            let text = format!(
                "the plan needs {} of device memory, and {} are free: activations {}, weights and optimizer state {}, batches {}, workspaces {}",
                gib(self.total()),
                gib(free),
                gib(self.arena),
                gib(self.persistent),
                gib(3 * self.inputs),
                gib(self.scratch + Blas::overhead())
            );
            Error::new("R0708", text)
                .at(format!("cuda:{} {}", context.info.ordinal, context.info.name))
                .help("a smaller batch needs less; other programs may hold memory of the device")
        })
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
