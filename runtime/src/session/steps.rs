//! Optimizer steps: at once on the CPU; on a device that works behind the host, queued, with
//! reports that come some steps later.

use super::{Session, StepReport};
use crate::backend::{Phase, Queue};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::tensors::{Element, HostTensor};
use precast_plan::TensorId;
use std::borrow::Borrow;
use std::time::Instant;

/// A step that was submitted and whose values have not all come back.
pub(super) struct Pending {
    step: u64,
    /// Requests that have not come back, those not yet made included.
    requests: usize,
    seconds: f64,
}

impl Session {
    /// One optimizer step over `batches`, as many as the plan accumulates.
    ///
    /// # Errors
    /// If there are more or fewer batches, one does not fit the plan, or the device failed.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepReport> {
        if batches.len() as u64 != u64::from(self.plan.accumulate) {
            let text =
                format!("{} batches for a step that takes {}", batches.len(), self.plan.accumulate);
            return Err(Error::new("R0504", text));
        }
        let mut rest = batches.iter();
        let next = || Ok(rest.next().expect("counted above"));
        if self.backend.queue().is_none() {
            return self.run(next);
        }
        self.enqueue(next)?;
        self.receive_all()?;
        Ok(self.ready.pop().expect("the step just submitted is the last to report"))
    }

    /// One optimizer step over the batches that `next` gives, one of them in memory at a time.
    /// Does not wait for a device that works behind the host: reports come in order, some steps
    /// later, with the numbers that [`Session::step`] would give. An error of such a device may be
    /// that of an earlier step.
    ///
    /// # Errors
    /// As [`Session::step`]; the first error of `next`, after which the gradients of the batches
    /// before it are part of the next step. The reports of the steps before an error are what
    /// [`Session::finish`] gives next.
    pub fn submit<B: Borrow<Batch>>(
        &mut self,
        next: impl FnMut() -> Result<B>,
    ) -> Result<Vec<StepReport>> {
        if self.backend.queue().is_none() {
            return Ok(vec![self.run(next)?]);
        }
        self.enqueue(next)?;
        while self.receive(false)? {}
        Ok(std::mem::take(&mut self.ready))
    }

    /// As [`Session::submit`], waiting for the report.
    ///
    /// # Errors
    /// As [`Session::submit`].
    pub fn step_from(&mut self, next: impl FnMut() -> Result<Batch>) -> Result<StepReport> {
        let mut reports = self.submit(next)?;
        reports.extend(self.finish()?);
        Ok(reports.pop().expect("the step just submitted is the last to report"))
    }

    /// Waits for every step that was submitted, and gives the reports that are left.
    ///
    /// # Errors
    /// As [`Session::step`]; another call then gives the reports of the steps before the error.
    pub fn finish(&mut self) -> Result<Vec<StepReport>> {
        self.receive_all()?;
        Ok(std::mem::take(&mut self.ready))
    }

    fn run<B: Borrow<Batch>>(&mut self, mut next: impl FnMut() -> Result<B>) -> Result<StepReport> {
        let start = Instant::now();
        for i in 0..self.plan.accumulate {
            self.upload(next()?.borrow(), u64::from(i))?;
            self.backend.run(Phase::Micro)?;
        }
        self.backend.run(Phase::Update)?;
        self.steps += 1;
        self.report(start)
    }

    /// The report of the step that was just taken.
    pub(super) fn report(&self, start: Instant) -> Result<StepReport> {
        let values = self.reported.iter().map(|&id| Ok(self.tensor(id)?.to_f32()[0]));
        let values: Vec<f32> = values.collect::<Result<_>>()?;
        Ok(self.reports.report(self.steps, &values, start.elapsed().as_secs_f64()))
    }

    fn enqueue<B: Borrow<Batch>>(&mut self, next: impl FnMut() -> Result<B>) -> Result<()> {
        let Err(error) = self.enqueue_all(next) else { return Ok(()) };
        // The steps before this one are not at fault: their reports are kept.
        let settled = self.receive_all();
        self.pending.clear();
        match settled {
            // What went wrong in an earlier step comes first.
            Err(earlier) if earlier.code != error.code => Err(earlier),
            _ => Err(error),
        }
    }

    /// After an error of a step: what later steps computed from it belongs to nobody. Errors that
    /// come with their values are that one again.
    fn abandon(&mut self) {
        for _ in 0..std::mem::take(&mut self.asked) {
            let _ = self.queue().receive(true);
        }
        self.pending.clear();
    }

    fn enqueue_all<B: Borrow<Batch>>(&mut self, mut next: impl FnMut() -> Result<B>) -> Result<()> {
        let room = self.queue().room();
        let values = self.reported.clone();
        let (step, requests) = (self.steps + 1, self.plan.accumulate as usize);
        self.pending.push_back(Pending { step, requests, seconds: 0.0 });
        for i in 0..requests {
            self.upload(next()?.borrow(), i as u64)?;
            while self.asked >= room {
                self.receive(true)?;
            }
            let last = i + 1 == requests;
            let queue = self.queue();
            queue.submit(last)?;
            // Values of a step are whole behind its last batch.
            queue.request(if last { &values } else { &[] })?;
            self.asked += 1;
        }
        self.steps = step;
        Ok(())
    }

    fn queue(&mut self) -> &mut dyn Queue {
        self.backend.queue().expect("the caller has asked")
    }

    fn receive_all(&mut self) -> Result<()> {
        while self.receive(true)? {}
        Ok(())
    }

    /// Takes in the oldest values on their way; whether there were any.
    fn receive(&mut self, wait: bool) -> Result<bool> {
        if self.asked == 0 {
            return Ok(false);
        }
        let late = match self.queue().receive(wait) {
            Ok(Some(late)) => late,
            Ok(None) => return Ok(false),
            Err(e) => {
                self.asked -= 1;
                self.abandon();
                return Err(e);
            }
        };
        self.asked -= 1;
        let pending = self.pending.front_mut().expect("asked above");
        pending.seconds += late.seconds;
        pending.requests -= 1;
        if pending.requests == 0 {
            let pending = self.pending.pop_front().expect("asked above");
            let value = |(&id, bytes): (&TensorId, Vec<u8>)| {
                let element = Element::Plan(self.plan.tensors[id as usize].dtype);
                HostTensor { element, shape: vec![], bytes: bytes.into() }.to_f32()[0]
            };
            let values: Vec<f32> = self.reported.iter().zip(late.values).map(value).collect();
            self.ready.push(self.reports.report(pending.step, &values, pending.seconds));
        }
        Ok(true)
    }
}
