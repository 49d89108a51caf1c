//! What of a session goes on after its process: weights, averages, checkpoints.

use super::{Session, is_step_only};
use crate::checkpoint::{Checkpoint, Snapshot, unfit};
use crate::data::DataState;
use crate::error::Result;
use crate::init;
use crate::tensors::{Element, HostTensor, TensorTable, WeightSource, write_tensors};
use precast_plan::{Role, Storage, TensorId};
use std::collections::BTreeMap;
use std::path::Path;

/// Which checkpoints a session takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Those of the same plan's state.
    Exact,
    /// Those of the same weights and optimizer state. Loss scale and counters that the plan has and
    /// the checkpoint lacks begin anew; those that only the checkpoint has are left.
    Machine,
    /// Those of the same weights and optimizer state under any policy: what only the checkpoint has is left,
    /// whatever it is.
    Weights,
}

impl Session {
    fn collect(
        &self,
        pick: impl Fn(Role) -> bool,
        name: impl Fn(&str) -> String,
    ) -> Result<TensorTable> {
        let mut out = BTreeMap::new();
        for (i, t) in self.plan.tensors.iter().enumerate() {
            if let Storage::Persistent { role, .. } = t.storage
                && pick(role)
                && !is_step_only(&t.name)
            {
                let bytes = self.tensor(i as TensorId)?.bytes.into_owned();
                out.insert(name(&t.name), (t.dtype, t.shape.clone(), bytes));
            }
        }
        Ok(out)
    }

    /// Writes parameters and buffers as safetensors, under the model's own names.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn save_weights(&self, path: &Path) -> Result<()> {
        let weights = |r| matches!(r, Role::Parameter | Role::Buffer);
        write_tensors(path, &BTreeMap::new(), &self.collect(weights, str::to_string)?)
    }

    /// Writes the moving averages under the parameters' names (plans name them `ema.<parameter>`).
    /// Returns whether the plan has any; without, nothing is written.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn save_ema(&self, path: &Path) -> Result<bool> {
        let bare = |n: &str| n.strip_prefix("ema.").unwrap_or(n).to_string();
        let list = self.collect(|r| r == Role::Ema, bare)?;
        if list.is_empty() {
            return Ok(false);
        }
        write_tensors(path, &BTreeMap::new(), &list)?;
        Ok(true)
    }

    /// Copies everything a bit-exact continuation needs: all persistent tensors but copies of weights
    /// in fewer bits, which follow from the weights and which each backend keeps in its own way; the
    /// step count, the seed, and where in which data the run stands. Every step must have reported.
    ///
    /// # Errors
    /// If the device failed.
    pub fn snapshot(&self, data: &DataState) -> Result<Snapshot> {
        let kept = |r| !matches!(r, Role::Constant | Role::WeightCopy);
        let run = (self.plan.model.as_str(), self.seed, self.steps);
        Ok(Snapshot::new(run, data, self.collect(kept, str::to_string)?))
    }

    /// Writes a [`Session::snapshot`].
    ///
    /// # Errors
    /// If the device failed, or the disk refuses.
    pub fn save_checkpoint(&self, path: &Path, data: &DataState) -> Result<()> {
        self.snapshot(data)?.write(path)
    }

    /// Continues from a checkpoint file; returns where its data stood, for
    /// [`Dataset::resume`](crate::data::Dataset::resume). Nothing changes on an error.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Session::restore`].
    pub fn load_checkpoint(&mut self, path: &Path) -> Result<DataState> {
        let checkpoint = Checkpoint::open(path)?;
        self.restore(&checkpoint, Fit::Exact)?;
        Ok(*checkpoint.data())
    }

    /// Continues from a checkpoint. Nothing changes on an error.
    ///
    /// # Errors
    /// If the checkpoint is of another seed, or of a plan with other state than `fit` allows.
    pub fn restore(&mut self, checkpoint: &Checkpoint, fit: Fit) -> Result<()> {
        let (path, file) = (checkpoint.path(), checkpoint.file());
        self.check_seed(checkpoint)?;
        let bad = |text| unfit(path, "R0509", text);
        let mut values = vec![];
        let mut copies = vec![];
        for (i, t) in self.plan.tensors.iter().enumerate() {
            let Storage::Persistent { role, .. } = t.storage else { continue };
            if role == Role::Constant || is_step_only(&t.name) {
                continue;
            }
            if role == Role::WeightCopy {
                copies.push(i as TensorId);
                continue;
            }
            if file.info(&t.name).is_err_and(|e| e.code == "R0204") {
                if fit != Fit::Exact && role == Role::Machine {
                    continue;
                }
                return Err(bad(format!("the checkpoint lacks `{}`", t.name)));
            }
            let value = file.tensor(&t.name)?;
            if value.shape != t.shape || value.element != Element::Plan(t.dtype) {
                let text = format!(
                    "`{}` is {} {:?} in the plan and {:?} {:?} in the checkpoint",
                    t.name, t.dtype, t.shape, value.element, value.shape
                );
                return Err(bad(text));
            }
            values.push((i as TensorId, value));
        }
        let kept = |name: &String| {
            let storage = self.names.get(name).map(|&i| &self.plan.tensors[i as usize].storage);
            let left = match fit {
                Fit::Exact => false,
                Fit::Machine => name.starts_with("machine."),
                Fit::Weights => true,
            };
            left || matches!(storage, Some(Storage::Persistent { role, .. }) if *role != Role::Constant)
        };
        if let Some(extra) = file.names().into_iter().find(|n| !kept(n)) {
            return Err(bad(format!("the plan lacks `{extra}` of the checkpoint")));
        }
        self.put(values, copies)?;
        self.steps = checkpoint.steps();
        self.begin()
    }

    fn check_seed(&self, checkpoint: &Checkpoint) -> Result<()> {
        if checkpoint.seed() == self.seed {
            return Ok(());
        }
        let text = format!(
            "the checkpoint was made with seed {}, this run has {}",
            checkpoint.seed(),
            self.seed
        );
        Err(unfit(checkpoint.path(), "R0510", text))
    }

    /// Writes values of a checkpoint, and then the copies that follow from them.
    fn put(&mut self, values: Vec<(TensorId, HostTensor)>, copies: Vec<TensorId>) -> Result<()> {
        for (id, value) in values {
            self.backend.write(id, &value.bytes)?;
        }
        for id in copies {
            init::copy(&self.plan, self.backend.as_mut(), id)?;
        }
        Ok(())
    }
}
