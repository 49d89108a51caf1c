//! A step one kernel at a time, with its values looked at as they come about.

use super::{Session, StepReport, is_step_only};
use crate::backend::Phase;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::init;
use precast_plan::{Role, Storage, TensorId, Watch};
use std::time::Instant;

/// The value of a watch in one micro batch.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Which batch of the step, from 0.
    pub micro: u32,
    /// Index into the watches.
    pub watch: usize,
    /// Row-major, over the watch's shape.
    pub values: &'a [f32],
}

impl Session {
    /// One optimizer step, as [`Session::submit`] takes it; `see` is given the value of every watch
    /// of every micro batch, in the order in which they are complete.
    ///
    /// # Errors
    /// As [`Session::submit`]; R0511 on a device that runs phases as a whole.
    pub fn step_watched(
        &mut self,
        mut next: impl FnMut() -> Result<Batch>,
        watches: &[Watch],
        see: &mut dyn FnMut(Seen),
    ) -> Result<StepReport> {
        let start = Instant::now();
        // Slot 0: before the first step.
        let mut due: Vec<Vec<usize>> = vec![vec![]; self.plan.micro.len() + 1];
        for (i, w) in watches.iter().enumerate() {
            due[w.after.map_or(0, |s| s as usize + 1)].push(i);
        }
        let mut values = vec![];
        for micro in 0..self.plan.accumulate {
            let batch = next()?;
            self.upload(&batch, u64::from(micro))?;
            for (slot, due) in due.iter().enumerate() {
                if slot > 0 {
                    self.backend.run_step(Phase::Micro, slot - 1)?;
                }
                for &watch in due {
                    self.look(&watches[watch], &mut values)?;
                    see(Seen { micro, watch, values: &values });
                }
            }
        }
        self.backend.run(Phase::Update)?;
        self.steps += 1;
        self.report(start)
    }

    /// The elements of a watch, row-major.
    fn look(&self, watch: &Watch, out: &mut Vec<f32>) -> Result<()> {
        let whole = self.tensor(watch.access.tensor)?.to_f32();
        out.clear();
        gather(&whole, watch, out);
        Ok(())
    }

    /// Takes over the state of another session of the same model and recipe: every tensor that
    /// outlives a step, and the number of steps taken. The two plans may order their kernels and
    /// lay out their memory differently, and be for different devices.
    ///
    /// # Errors
    /// R0512 where the two do not keep the same tensors.
    pub fn adopt(&mut self, other: &Session) -> Result<()> {
        let mut copies = vec![];
        for i in 0..self.plan.tensors.len() {
            let t = &self.plan.tensors[i];
            let Storage::Persistent { role, .. } = t.storage else { continue };
            if role == Role::Constant || is_step_only(&t.name) {
                continue;
            }
            let theirs = other.names.get(&t.name).map(|&id| &other.plan.tensors[id as usize]);
            if theirs.is_some_and(|o| o.shape == t.shape && o.dtype == t.dtype) {
                let value = other.read(&t.name)?;
                self.backend.write(i as TensorId, &value.bytes)?;
            } else if role == Role::WeightCopy {
                // Plans for other devices order their copies of weights otherwise.
                copies.push(i as TensorId);
            } else {
                let text = format!("the other plan does not keep `{}` alike", t.name);
                return Err(Error::new("R0512", text));
            }
        }
        for copy in copies {
            init::copy(&self.plan, self.backend.as_mut(), copy)?;
        }
        self.steps = other.steps;
        self.begin()
    }

    /// Makes the next step number `step` (from 1), with this loss scale where the plan has one: its
    /// batches are numbered as they were, so that dropout masks are those of that step. Weights stay as
    /// they are.
    ///
    /// # Errors
    /// If the device failed.
    pub fn rewind(&mut self, step: u64, scale: Option<f32>) -> Result<()> {
        self.steps = step.saturating_sub(1);
        self.begin()?;
        let batches = self.steps.wrapping_mul(u64::from(self.plan.accumulate));
        if let Some(&id) = self.names.get("machine.batch") {
            // Only what the counter's 32 bits hold, which f64 holds whatever the step is.
            let batches = f64::from(batches as u32);
            self.write_scalar(id, self.plan.tensors[id as usize].dtype, batches)?;
        }
        if let (Some(scale), Some(&id)) = (scale, self.names.get("machine.loss_scale")) {
            self.write_scalar(id, self.plan.tensors[id as usize].dtype, f64::from(scale))?;
        }
        Ok(())
    }

    /// Puts what says nothing between steps as it is before the first.
    pub(super) fn begin(&mut self) -> Result<()> {
        for i in 0..self.plan.tensors.len() {
            let t = &self.plan.tensors[i];
            if is_step_only(&t.name) {
                self.write_scalar(i as TensorId, t.dtype, 0.0)?;
            }
        }
        Ok(())
    }
}

/// Elements of a strided view of a tensor, row-major.
fn gather(whole: &[f32], watch: &Watch, out: &mut Vec<f32>) {
    let (shape, strides) = (&watch.shape, &watch.access.strides);
    let count = shape.iter().product::<u64>() as usize;
    let mut dense = 1;
    let is_dense = (0..shape.len()).rev().all(|d| {
        let fits = shape[d] == 1 || strides[d] == dense;
        dense *= shape[d] as i64;
        fits
    });
    let offset = watch.access.offset as usize;
    if is_dense {
        out.extend_from_slice(&whole[offset..offset + count]);
        return;
    }
    let mut index = vec![0u64; shape.len()];
    let mut at = offset as i64;
    for _ in 0..count {
        out.push(whole[at as usize]);
        for d in (0..shape.len()).rev() {
            index[d] += 1;
            at += strides[d];
            if index[d] < shape[d] {
                break;
            }
            at -= strides[d] * shape[d] as i64;
            index[d] = 0;
        }
    }
}
