//! The CPU as a [`Backend`].

use super::exec::{self, Bound, Memory};
use super::pool::{Aligned, Pool};
use crate::backend::{Backend, Held, KernelTime, Phase};
use crate::error::{Error, Result};
use precast_plan::{Plan, Step, TensorId};

/// A plan loaded on the CPU.
pub struct CpuBackend {
    /// Bound steps of `micro`, `update` and `eval`.
    phases: [Vec<Bound>; 3],
    memory: Memory,
    scratch: Aligned,
    pool: Pool,
    held: Held,
    /// Of every step of `phases`, where they are timed.
    times: Option<[Vec<KernelTime>; 3]>,
}

impl CpuBackend {
    /// Validates the plan, allocates its memory and binds its steps. `threads` = 0 takes every
    /// core. Results have the same bits for any number of threads.
    ///
    /// # Errors
    /// If the plan is not valid, needs a kernel this backend lacks, or memory cannot be had.
    pub fn new(plan: &Plan, threads: usize) -> Result<CpuBackend> {
        plan.validate().map_err(|errors| {
            let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Error::new("R0103", format!("the plan is not valid:\n  {}", list.join("\n  ")))
        })?;
        if plan.target.device != "cpu" {
            let text = format!("the plan is for `{}`, not for the CPU", plan.target.device);
            return Err(Error::new("R0104", text).help("compile with `device = \"cpu\"`"));
        }
        let before = Aligned::live();
        let mut pool = Pool::new(threads)?;
        let memory = Memory::new(plan)?;
        let binder = exec::Binder::new(plan, &memory);
        let bind = |steps: &[Step]| -> Result<Vec<Bound>> {
            steps
                .iter()
                .map(|s| binder.bind(s).map_err(|e| e.at(format!("step `{}`", s.name))))
                .collect()
        };
        // Kernels size their scratch memory for the pool they run on.
        let (phases, shared) = pool.install(|| -> Result<_> {
            let phases = [bind(&plan.micro)?, bind(&plan.update)?, bind(&plan.eval)?];
            let shared = phases.iter().flatten().map(Bound::shared_scratch).max().unwrap_or(0);
            Ok((phases, shared))
        })?;
        pool.reserve(phases.iter().flatten().map(Bound::worker_scratch).max().unwrap_or(0))?;
        let scratch = Aligned::new(shared)?;
        // Kernels keep blocks here and there; all that are new and not counted otherwise are theirs.
        let (tensors, threads) = (memory.bytes(), pool.bytes());
        let own = threads - pool.threads() as u64 * Pool::STACK;
        let scratch_bytes = Aligned::live().saturating_sub(before + tensors + own);
        let held = Held { tensors, scratch: scratch_bytes, threads };
        Ok(CpuBackend { phases, memory, scratch, pool, held, times: None })
    }

    /// Bytes of a tensor, as they are now.
    pub fn bytes(&self, tensor: TensorId) -> &[u8] {
        let (ptr, len) = self.memory.tensor(tensor);
        // SAFETY: validated to lie in its region; steps run under `&mut self`.
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }

    /// Runs one phase and calls `after(step index, seconds)` after every step.
    ///
    /// # Errors
    /// As [`Backend::run`].
    pub fn run_timed(
        &mut self,
        phase: Phase,
        mut after: impl FnMut(usize, f64) + Send,
    ) -> Result<()> {
        let (steps, pool, scratch) =
            (&self.phases[phase as usize], &self.pool, self.scratch.bytes_mut());
        pool.install(|| {
            for (i, step) in steps.iter().enumerate() {
                let start = std::time::Instant::now();
                // SAFETY: as in `run`.
                unsafe { step.run(pool, scratch)? };
                after(i, start.elapsed().as_secs_f64());
            }
            Ok(())
        })
    }

    /// Runs step `index` of a phase by itself.
    ///
    /// # Errors
    /// As [`Backend::run`].
    ///
    /// # Panics
    /// If the phase has no such step.
    pub fn run_step(&mut self, phase: Phase, index: usize) -> Result<()> {
        let (step, pool) = (&self.phases[phase as usize][index], &self.pool);
        let scratch = self.scratch.bytes_mut();
        // SAFETY: as in `run`.
        pool.install(|| unsafe { step.run(pool, scratch) })
    }

    fn check(&self, tensor: TensorId, len: usize) -> Result<*mut u8> {
        let (ptr, want) = self.memory.tensor(tensor);
        if len != want {
            let text = format!("tensor {tensor} has {want} bytes, not {len}");
            return Err(Error::new("R0105", text));
        }
        Ok(ptr)
    }
}

impl Backend for CpuBackend {
    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()> {
        let ptr = self.check(tensor, bytes.len())?;
        // SAFETY: the tensor lies in its region and nothing runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ptr, bytes.len()) };
        Ok(())
    }

    fn read(&self, tensor: TensorId, out: &mut [u8]) -> Result<()> {
        self.check(tensor, out.len())?;
        out.copy_from_slice(self.bytes(tensor));
        Ok(())
    }

    fn run(&mut self, phase: Phase) -> Result<()> {
        if let Some(mut times) = self.times.take() {
            let list = &mut times[phase as usize];
            let ran = self.run_timed(phase, |step, seconds| list[step].add(seconds));
            self.times = Some(times);
            return ran;
        }
        let (steps, pool, scratch) =
            (&self.phases[phase as usize], &self.pool, self.scratch.bytes_mut());
        pool.install(|| {
            for step in steps {
                // SAFETY: the memory lives as long as `self`, which is borrowed exclusively; the
                // plan is valid, so steps stay inside their tensors.
                unsafe { step.run(pool, scratch)? };
            }
            Ok(())
        })
    }

    fn run_step(&mut self, phase: Phase, index: usize) -> Result<()> {
        CpuBackend::run_step(self, phase, index)
    }

    fn time_kernels(&mut self) -> Result<()> {
        let fresh = |steps: &Vec<Bound>| vec![KernelTime::default(); steps.len()];
        self.times = Some(self.phases.each_ref().map(fresh));
        Ok(())
    }

    fn kernel_times(&self, phase: Phase) -> &[KernelTime] {
        self.times.as_ref().map_or(&[], |times| &times[phase as usize])
    }

    fn held(&self) -> Option<Held> {
        Some(self.held)
    }

    fn describe(&self) -> String {
        format!("cpu, {} threads, {:?}", self.pool.threads(), super::simd::isa())
    }
}
