//! The training loop over a loaded plan.

use crate::backend::{Backend, Held, KernelTime, Phase};
use crate::cpu::CpuBackend;
use crate::cuda::CudaBackend;
use crate::data::{Batch, Wanted};
use crate::error::{Error, Result};
use crate::init::{self, initialise};
use crate::tensors::{Element, HostTensor, WeightSource};
use precast_plan::words::{difference, suggestion};
use precast_plan::{DType, Kernel, Named, Plan, Role, Storage, TensorId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

mod state;
mod steps;
mod watched;

pub use state::Fit;
use steps::Pending;
pub use watched::Seen;

/// How a session runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// 0: every core.
    pub threads: usize,
    /// Which of this machine's GPUs runs a plan that is for one.
    pub gpu: usize,
    /// Fed to the plan's input `seed`, if it has one.
    pub seed: u64,
}

/// What one optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// 1 for the first step.
    pub step: u64,
    /// Of all its batches, unscaled.
    pub loss: f32,
    /// The loss scale this step used, where the plan has one.
    pub scale: Option<f32>,
    /// The update was skipped because a gradient was not finite.
    pub skipped: bool,
    pub grad_norm: Option<f32>,
    /// The learning rate of this step, as the update reads it.
    pub lr: Option<f32>,
    /// Targets that the loss counted, where it counts; a step without any is not applied.
    pub counted: Option<f32>,
    /// On a CPU from the batches to the report; on a GPU what the device worked, uploads and waits
    /// for the host not counted.
    pub seconds: f64,
}

/// Which results of the plan make a report.
#[derive(Clone, Copy, Debug)]
struct Reports {
    there: [bool; Reports::RESULTS.len()],
}

impl Reports {
    const RESULTS: [&str; 6] = ["loss", "loss_scale", "skipped", "grad_norm", "counted", "lr"];

    /// The report of a step; `values` are those of the results that are there, in their order.
    fn report(self, step: u64, values: &[f32], seconds: f64) -> StepReport {
        let mut values = values.iter().copied();
        let [loss, scale, skipped, grad_norm, counted, lr] =
            self.there.map(|there| if there { values.next() } else { None });
        StepReport {
            step,
            loss: loss.unwrap_or(f32::NAN),
            scale,
            skipped: skipped.is_some_and(|x| x != 0.0),
            grad_norm,
            lr,
            counted,
            seconds,
        }
    }
}

/// Whether a tensor says nothing between steps.
fn is_step_only(name: &str) -> bool {
    name.starts_with(precast_plan::STEP_ONLY)
}

/// Inputs the session feeds by itself, one element each.
const OWN_INPUTS: [&str; 2] = ["step", "seed"];

/// Value of a scalar input at a step (0 for the first).
pub type Scalar = Box<dyn Fn(u64) -> f64 + Send>;

/// A plan being trained.
pub struct Session {
    plan: Plan,
    backend: Box<dyn Backend>,
    names: BTreeMap<String, TensorId>,
    scalars: Vec<(TensorId, DType, Scalar)>,
    own: Vec<(TensorId, DType, &'static str)>,
    seed: u64,
    steps: u64,
    /// Tensors of a report that stand in the plan, and what they are.
    reported: Vec<TensorId>,
    reports: Reports,
    /// Steps on their way, oldest first, and reports nobody has taken yet.
    pending: VecDeque<Pending>,
    /// Requests in flight.
    asked: usize,
    ready: Vec<StepReport>,
}

impl Session {
    /// Loads `plan` on the device it is for and sets every persistent tensor to its first value.
    ///
    /// # Errors
    /// If the plan is not valid or cannot run here, or the weights do not fit it.
    pub fn new(plan: Plan, weights: &dyn WeightSource, options: &Options) -> Result<Session> {
        let backend: Box<dyn Backend> = match plan.target.device.as_str() {
            "cuda" => Box::new(CudaBackend::new(&plan, options.gpu)?),
            _ => Box::new(CpuBackend::new(&plan, options.threads)?),
        };
        Session::on(plan, backend, weights, options)
    }

    /// As [`Session::new`], on a backend that has loaded the same plan.
    ///
    /// # Errors
    /// If the weights do not fit the plan.
    pub fn on(
        plan: Plan,
        mut backend: Box<dyn Backend>,
        weights: &dyn WeightSource,
        options: &Options,
    ) -> Result<Session> {
        initialise(&plan, weights, backend.as_mut())?;
        let names: BTreeMap<String, TensorId> =
            plan.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i as TensorId)).collect();
        let result = |name: &str| plan.results.iter().find(|r| r.name == name).map(|r| r.tensor);
        let own = OWN_INPUTS
            .into_iter()
            .filter_map(|name| {
                let id = *names.get(name)?;
                let t = &plan.tensors[id as usize];
                let scalar = t.shape.iter().product::<u64>() == 1;
                (scalar && matches!(t.storage, Storage::Input { .. }))
                    .then_some((id, t.dtype, name))
            })
            .collect();
        let wanted = Reports::RESULTS.map(result);
        Ok(Session {
            reports: Reports { there: wanted.map(|id| id.is_some()) },
            reported: wanted.into_iter().flatten().collect(),
            names,
            own,
            scalars: vec![],
            seed: options.seed,
            steps: 0,
            pending: VecDeque::new(),
            asked: 0,
            ready: vec![],
            backend,
            plan,
        })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// Times every kernel by itself from now on.
    ///
    /// # Errors
    /// As [`Backend::time_kernels`].
    pub fn time_kernels(&mut self) -> Result<()> {
        self.backend.time_kernels()
    }

    /// As [`Backend::kernel_times`].
    pub fn kernel_times(&self, phase: Phase) -> &[KernelTime] {
        self.backend.kernel_times(phase)
    }

    /// As [`Backend::held`].
    pub fn held(&self) -> Option<Held> {
        self.backend.held()
    }

    /// Optimizer steps taken, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The inputs that batches must feed.
    pub fn wanted(&self) -> Vec<Wanted> {
        let fed = |id: TensorId| {
            self.own.iter().any(|o| o.0 == id) || self.scalars.iter().any(|s| s.0 == id)
        };
        self.plan
            .tensors
            .iter()
            .enumerate()
            .filter(|(i, t)| matches!(t.storage, Storage::Input { .. }) && !fed(*i as TensorId))
            .map(|(i, _)| self.input(i as TensorId))
            .collect()
    }

    fn input(&self, id: TensorId) -> Wanted {
        let t = &self.plan.tensors[id as usize];
        let classes = self.plan.classes.iter().find(|c| c.tensor == id).copied();
        Wanted { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone(), classes }
    }

    /// Feeds the one-element input `name` with `f(step)` before every step, e.g. `lr`.
    ///
    /// # Errors
    /// If the plan has no such input.
    pub fn feed(&mut self, name: &str, f: Scalar) -> Result<()> {
        let id = self.id(name)?;
        let t = &self.plan.tensors[id as usize];
        if !matches!(t.storage, Storage::Input { .. }) || t.shape.iter().product::<u64>() != 1 {
            let text = format!("`{name}` is not an input of one element");
            return Err(Error::new("R0501", text).at(format!("tensor `{name}`")));
        }
        self.scalars.push((id, t.dtype, f));
        Ok(())
    }

    fn id(&self, name: &str) -> Result<TensorId> {
        self.names.get(name).copied().ok_or_else(|| {
            let known: Vec<&str> = self.names.keys().map(String::as_str).collect();
            let text = format!("the plan has no tensor `{name}`");
            Error::new("R0502", text).help(suggestion("tensors", name, &known))
        })
    }

    fn write_scalar(&mut self, id: TensorId, dtype: DType, x: f64) -> Result<()> {
        let host = HostTensor {
            element: Element::F64,
            shape: vec![],
            bytes: x.to_le_bytes().to_vec().into(),
        };
        let mut bytes = Vec::with_capacity(8);
        // Counters wrap at 2^31, as the programs that read them do.
        if dtype.is_real() {
            host.convert(0..1, dtype, (1.0, 0.0), &mut bytes)?;
        } else {
            bytes.extend_from_slice(&i64::from(x as u64 as i32).to_le_bytes()[..dtype.size()]);
        }
        self.backend.write(id, &bytes)
    }

    fn upload(&mut self, batch: &Batch, micro: u64) -> Result<()> {
        for (name, bytes) in &batch.tensors {
            let id = self.id(name)?;
            if !matches!(self.plan.tensors[id as usize].storage, Storage::Input { .. }) {
                return Err(Error::new("R0503", format!("`{name}` is not an input of the plan")));
            }
            self.input(id).check(bytes)?;
            self.backend.write(id, bytes).map_err(|e| e.at(format!("input `{name}`")))?;
        }
        for k in 0..self.own.len() {
            let (id, dtype, name) = self.own[k];
            // Every batch has a step number of its own, so that dropout masks differ.
            let number = self.steps * u64::from(self.plan.accumulate) + micro;
            self.write_scalar(
                id,
                dtype,
                if name == "seed" { self.seed as f64 } else { number as f64 },
            )?;
        }
        for k in 0..self.scalars.len() {
            let (id, dtype) = (self.scalars[k].0, self.scalars[k].1);
            let x = (self.scalars[k].2)(self.steps);
            self.write_scalar(id, dtype, x)?;
        }
        Ok(())
    }

    /// Forward and backward over one batch, without an update: for `grad`.
    ///
    /// # Errors
    /// If the batch does not fit the plan, or the device failed.
    pub fn micro(&mut self, batch: &Batch) -> Result<()> {
        self.upload(batch, 0)?;
        self.backend.run(Phase::Micro)
    }

    /// Runs the forward-only phase over one batch; its results are then read with
    /// [`Session::eval_result`].
    ///
    /// # Errors
    /// If the plan has no such phase, or the batch does not fit.
    pub fn eval(&mut self, batch: &Batch) -> Result<()> {
        if self.plan.eval.is_empty() {
            return Err(Error::new("R0505", "the plan has nothing to evaluate"));
        }
        self.upload(batch, 0)?;
        self.backend.run(Phase::Eval)
    }

    fn tensor(&self, id: TensorId) -> Result<HostTensor<'static>> {
        let t = &self.plan.tensors[id as usize];
        let mut bytes = vec![0; t.shape.iter().product::<u64>() as usize * t.dtype.size()];
        self.backend.read(id, &mut bytes)?;
        Ok(HostTensor {
            element: Element::Plan(t.dtype),
            shape: t.shape.clone(),
            bytes: bytes.into(),
        })
    }

    /// A tensor by its name in the plan: parameters, buffers, optimizer state, EMA, temporaries.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn read(&self, name: &str) -> Result<HostTensor<'static>> {
        self.tensor(self.id(name)?)
    }

    fn named(&self, list: &[Named], name: &str) -> Result<HostTensor<'static>> {
        let r = list.iter().find(|r| r.name == name).ok_or_else(|| {
            let known: Vec<&str> = list.iter().map(|r| r.name.as_str()).collect();
            Error::new("R0506", format!("the plan has no result `{name}`"))
                .help(suggestion("results", name, &known))
        })?;
        self.tensor(r.tensor)
    }

    /// A named result of the last step: `loss`, `out.logits`, ….
    ///
    /// # Errors
    /// If the plan has no such result.
    pub fn result(&self, name: &str) -> Result<HostTensor<'static>> {
        self.named(&self.plan.results, name)
    }

    /// A named result of the last evaluation.
    ///
    /// # Errors
    /// If the plan has no such result.
    pub fn eval_result(&self, name: &str) -> Result<HostTensor<'static>> {
        self.named(&self.plan.eval_results, name)
    }

    /// Replaces a persistent tensor; of a parameter the 16-bit copies follow.
    ///
    /// # Errors
    /// If there is none of this name, or the shape differs.
    pub fn write(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        let id = self.id(name)?;
        let t = &self.plan.tensors[id as usize];
        if t.shape != value.shape {
            let differ =
                difference((&value.shape[..], "in the value"), (&t.shape[..], "in the plan"));
            let text =
                format!("`{name}` has shape {:?}, the value {:?}: {differ}", t.shape, value.shape);
            return Err(Error::new("R0507", text));
        }
        let mut bytes = vec![];
        value.convert(0..value.elements(), t.dtype, (1.0, 0.0), &mut bytes)?;
        self.backend.write(id, &bytes)?;
        for (k, t) in self.plan.tensors.iter().enumerate() {
            if let Storage::Persistent { role: Role::WeightCopy, init, .. } = &t.storage
                && init::original(init) == Some(id)
            {
                init::copy(&self.plan, self.backend.as_mut(), k as TensorId)?;
            }
        }
        Ok(())
    }

    /// What steps have written that outlives them and is not finite: weights, buffers, averages and
    /// optimizer state, each with the number of such elements. Infinities that the model came with,
    /// as in masks, are in tensors that no step writes.
    ///
    /// # Errors
    /// If the device failed.
    pub fn not_finite(&self) -> Result<Vec<(String, u64)>> {
        let mut found = vec![];
        for id in written(&self.plan) {
            let t = &self.plan.tensors[id as usize];
            let kept = matches!(
                t.storage,
                Storage::Persistent { role, .. } if role != Role::WeightCopy && role != Role::Machine
            );
            if kept && t.dtype.is_real() {
                let bad = self.tensor(id)?.to_f32().iter().filter(|x| !x.is_finite()).count();
                if bad > 0 {
                    found.push((t.name.clone(), bad as u64));
                }
            }
        }
        Ok(found)
    }
}

/// Tensors that row programs of a step write, as the update and running statistics do.
fn written(plan: &Plan) -> BTreeSet<TensorId> {
    let programs = plan.micro.iter().chain(&plan.update).filter_map(|s| match &s.kernel {
        Kernel::Rows(r) => Some(&r.instances),
        _ => None,
    });
    programs.flatten().flat_map(|i| i.outputs.iter().map(|a| a.tensor)).collect()
}
