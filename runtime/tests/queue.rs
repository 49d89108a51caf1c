//! Sessions on a device that works behind the host: reports come late, in order, with the numbers of
//! a device that does not.

mod common;

use common::{BATCH, IN, OUT, mlp};
use precast_plan::{Plan, TensorId};
use precast_runtime::backend::{Late, Queue};
use precast_runtime::data::Batch;
use precast_runtime::{
    Backend, CpuBackend, Error, HostTensor, Options, Phase, Result, Session, StepReport,
};
use std::collections::{BTreeMap, VecDeque};

const ROOM: usize = 5;

/// The CPU, whose values come back when `lag` newer requests have been made or somebody waits.
struct Behind {
    cpu: CpuBackend,
    plan: Plan,
    /// Values on their way, and whether a fault comes with them.
    sent: VecDeque<(Late, bool)>,
    lag: usize,
    requests: u64,
    /// From the request of this number on a fault stands on the device, until somebody is told.
    fault: Option<u64>,
    faulted: bool,
}

impl Behind {
    fn new(plan: &Plan, lag: usize, fault: Option<u64>) -> Behind {
        Behind {
            cpu: CpuBackend::new(plan, 1).unwrap(),
            plan: plan.clone(),
            sent: VecDeque::new(),
            lag,
            requests: 0,
            fault,
            faulted: false,
        }
    }
}

impl Backend for Behind {
    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()> {
        self.cpu.write(tensor, bytes)
    }

    fn read(&self, tensor: TensorId, out: &mut [u8]) -> Result<()> {
        self.cpu.read(tensor, out)
    }

    fn run(&mut self, phase: Phase) -> Result<()> {
        self.cpu.run(phase)
    }

    fn describe(&self) -> String {
        "behind".into()
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Queue for Behind {
    fn submit(&mut self, update: bool) -> Result<()> {
        self.cpu.run(Phase::Micro)?;
        if update { self.cpu.run(Phase::Update) } else { Ok(()) }
    }

    fn request(&mut self, tensors: &[TensorId]) -> Result<()> {
        assert!(self.sent.len() < ROOM, "more requests than there is room for");
        let value = |&t: &TensorId| {
            let tensor = &self.plan.tensors[t as usize];
            let elements: u64 = tensor.shape.iter().product();
            let mut out = vec![0; elements as usize * tensor.dtype.size()];
            self.cpu.read(t, &mut out).map(|()| out)
        };
        let values = tensors.iter().map(value).collect::<Result<_>>()?;
        self.requests += 1;
        self.faulted |= self.fault == Some(self.requests);
        self.sent.push_back((Late { values, seconds: 0.25 }, self.faulted));
        Ok(())
    }

    fn receive(&mut self, wait: bool) -> Result<Option<Late>> {
        if self.sent.is_empty() || (!wait && self.sent.len() <= self.lag) {
            return Ok(None);
        }
        let Some((late, faulty)) = self.sent.pop_front() else { return Ok(None) };
        if faulty {
            self.faulted = false;
            return Err(Error::new("R0112", "an id lies outside its table"));
        }
        Ok(Some(late))
    }

    fn room(&self) -> usize {
        ROOM
    }
}

fn batch(k: u64) -> Batch {
    let values = |n: u64, seed: f64| -> Vec<u8> {
        (0..n).flat_map(|i| (((i as f64 * 0.37 + seed).sin() * 0.9) as f32).to_le_bytes()).collect()
    };
    Batch {
        tensors: vec![
            ("in.x".into(), values(BATCH * IN, k as f64)),
            ("targets".into(), values(BATCH * OUT, k as f64 + 0.5)),
        ],
        rows: BATCH,
    }
}

fn plan(accumulate: u32) -> Plan {
    Plan { accumulate, ..mlp() }
}

fn session(plan: &Plan, behind: Option<Behind>) -> Session {
    let weights = BTreeMap::<String, HostTensor<'static>>::new();
    let options = Options { threads: 1, seed: 1, ..Options::default() };
    match behind {
        Some(b) => Session::on(plan.clone(), Box::new(b), &weights, &options).unwrap(),
        None => Session::new(plan.clone(), &weights, &options).unwrap(),
    }
}

fn step(k: u64, accumulate: u32) -> Vec<Batch> {
    (0..u64::from(accumulate)).map(|i| batch(k * 10 + i)).collect()
}

fn submit(s: &mut Session, batches: Vec<Batch>) -> Result<Vec<StepReport>> {
    let mut rest = batches.into_iter();
    s.submit(|| Ok(rest.next().expect("as many as the plan accumulates")))
}

/// Everything of a report but how long it took.
fn numbers(r: &StepReport) -> (u64, u32, Option<u32>, bool, Option<u32>) {
    (r.step, r.loss.to_bits(), r.scale.map(f32::to_bits), r.skipped, r.grad_norm.map(f32::to_bits))
}

#[test]
fn late_reports_are_those_of_a_device_that_does_not_wait() {
    // More batches a step than the ring has room for, too.
    for accumulate in [1, 3, 7] {
        let plan = plan(accumulate);
        let mut direct = session(&plan, None);
        let want: Vec<StepReport> =
            (0..9).map(|k| direct.step(&step(k, accumulate)).unwrap()).collect();
        for lag in [0, 1, 4] {
            let mut s = session(&plan, Some(Behind::new(&plan, lag, None)));
            let (mut got, mut most) = (vec![], 0);
            for k in 0..9 {
                got.extend(submit(&mut s, step(k, accumulate)).unwrap());
                assert_eq!(s.steps(), k + 1);
                most = most.max(k + 1 - got.len() as u64);
            }
            assert_eq!(most > 0, lag > 0, "reports come late where the device is late");
            got.extend(s.finish().unwrap());
            let all = |list: &[StepReport]| list.iter().map(numbers).collect::<Vec<_>>();
            assert_eq!(all(&got), all(&want), "accumulate {accumulate}, lag {lag}");
            assert!(got.iter().all(|r| r.seconds == 0.25 * f64::from(accumulate)));
            assert_eq!(s.read("w1").unwrap(), direct.read("w1").unwrap());
            assert_eq!(s.finish().unwrap(), []);
        }
    }
}

#[test]
fn a_step_that_waits_reports_itself_and_keeps_the_others() {
    let plan = plan(1);
    let mut s = session(&plan, Some(Behind::new(&plan, 4, None)));
    assert_eq!(submit(&mut s, step(0, 1)).unwrap(), []);
    assert_eq!(s.step(&step(1, 1)).unwrap().step, 2);
    assert_eq!(s.finish().unwrap().iter().map(|r| r.step).collect::<Vec<_>>(), [1]);
}

#[test]
fn an_error_of_an_earlier_step_keeps_the_reports_before_it() {
    for accumulate in [1, 3] {
        let plan = plan(accumulate);
        // Steps 1 and 2 are good.
        let fault = u64::from(accumulate) * 2 + 1;
        let mut s = session(&plan, Some(Behind::new(&plan, 2, Some(fault))));
        let mut got = vec![];
        let error = (0..9)
            .find_map(|k| match submit(&mut s, step(k, accumulate)) {
                Ok(reports) => {
                    got.extend(reports);
                    None
                }
                Err(e) => Some(e),
            })
            .expect("the fault comes to light");
        assert_eq!(error.code, "R0112");
        got.extend(s.finish().unwrap());
        assert_eq!(got.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2]);
        // The session goes on: reports are those of the steps that follow.
        let at = s.steps();
        assert_eq!(s.step(&step(0, accumulate)).unwrap().step, at + 1);
    }
}

#[test]
fn an_error_of_the_data_keeps_the_reports_of_every_step_before_it() {
    for (accumulate, lag) in [(1, 0), (1, 4), (3, 2), (3, 4)] {
        let plan = plan(accumulate);
        let mut s = session(&plan, Some(Behind::new(&plan, lag, None)));
        let mut got = vec![];
        for k in 0..3 {
            got.extend(submit(&mut s, step(k, accumulate)).unwrap());
        }
        // The last batch of the fourth step cannot be read.
        let mut batches = step(3, accumulate);
        batches.pop();
        let mut rest = batches.into_iter();
        let error = s
            .submit(|| rest.next().ok_or_else(|| Error::new("R0201", "the file ends")))
            .unwrap_err();
        assert_eq!(error.code, "R0201");
        got.extend(s.finish().unwrap());
        let steps: Vec<u64> = got.iter().map(|r| r.step).collect();
        assert_eq!(steps, [1, 2, 3], "accumulate {accumulate}, lag {lag}");
        assert_eq!(s.step(&step(4, accumulate)).unwrap().step, 4);
    }
}

#[test]
fn a_fault_of_an_earlier_step_comes_before_an_error_of_the_data() {
    let plan = plan(1);
    let mut s = session(&plan, Some(Behind::new(&plan, 4, Some(2))));
    for k in 0..3 {
        assert_eq!(submit(&mut s, step(k, 1)).unwrap(), []);
    }
    let error = s.submit::<Batch>(|| Err(Error::new("R0201", "the file ends"))).unwrap_err();
    assert_eq!(error.code, "R0112");
    assert_eq!(s.finish().unwrap().iter().map(|r| r.step).collect::<Vec<_>>(), [1]);
}
