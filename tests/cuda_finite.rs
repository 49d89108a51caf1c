//! A gradient that is not finite on the software device (a test tool, `tests/software_device`), which
//! has begun further steps by the time that the host knows.

mod common;

use common::Fixture;
use precast_plan::{Plan, Role, Storage};
use precast_runtime::cuda::CudaBackend;
use precast_runtime::data::{Batch, batch_of};
use precast_runtime::{HostTensor, Options, Session, StepReport};

// Nothing is measured.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0");

const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";

fn session(f: &Fixture, plan: &Plan) -> Session {
    let backend = CudaBackend::with(plan, 0, true).unwrap_or_else(|e| panic!("{e}"));
    let weights = f.weights(plan);
    let session = Session::on(plan.clone(), Box::new(backend), &weights, &Options::default());
    session.unwrap_or_else(|e| panic!("{e}"))
}

/// The fixture's batch with its first number replaced.
fn batch(f: &Fixture, s: &Session, first: Option<f32>) -> Batch {
    let all = f.batch.tensor("in.x").expect("listed");
    let mut x = all.to_f32();
    x[0] = first.unwrap_or(x[0]);
    let x = HostTensor::from_f32(&all.shape, &x);
    let t = f.batch.tensor("tgt.targets").expect("listed");
    batch_of(&s.wanted(), &[("x", x), ("targets", t)]).unwrap_or_else(|e| panic!("{e}"))
}

/// Tensors that outlive a step, but what says nothing between steps and the count of batches.
fn state(s: &Session) -> Vec<(String, Vec<u8>)> {
    let kept = s.plan().tensors.iter().filter(|t| {
        matches!(t.storage, Storage::Persistent { role, .. } if role != Role::Constant)
            && !t.name.starts_with(precast_plan::STEP_ONLY)
    });
    kept.map(|t| (t.name.clone(), s.read(&t.name).expect("a tensor").bytes.to_vec())).collect()
}

/// Submits a step of each batch without waiting for it.
fn submit(s: &mut Session, batches: &[Batch]) -> Vec<StepReport> {
    let mut reports = vec![];
    for b in batches {
        reports.extend(s.submit(|| Ok(b)).unwrap_or_else(|e| panic!("{e}")));
    }
    reports.extend(s.finish().unwrap_or_else(|e| panic!("{e}")));
    reports
}

#[test]
fn no_step_behind_it_is_applied() {
    let f = Fixture::open("mlp_mnist");
    for policy in ["f32", "bf16"] {
        let plan = f.compile_gpu("model.onnx", policy, SGD, "ema = 0.9", false).plan;
        let mut s = session(&f, &plan);
        let (good, bad) = (batch(&f, &s, None), batch(&f, &s, Some(f32::NAN)));
        let two = submit(&mut s, &[good.clone(), good.clone()]);
        assert!(two.iter().all(|r| !r.skipped && r.loss.is_finite()), "{two:?}");
        let before = state(&s);
        let rest = submit(&mut s, &[bad.clone(), good.clone(), good.clone()]);
        assert!(rest.len() == 3 && rest.iter().all(|r| r.skipped), "{rest:?}");
        assert!(rest[0].loss.is_nan() && rest[0].grad_norm.is_some_and(f32::is_nan), "{rest:?}");
        assert!(before == state(&s), "{policy}: the step changed something");
        // Taken again from there, with a batch in order, the run is as if nothing had been.
        s.rewind(3, None).unwrap_or_else(|e| panic!("{e}"));
        let again = submit(&mut s, std::slice::from_ref(&good));
        assert!(again[0].step == 3 && !again[0].skipped, "{again:?}");
        let mut whole = session(&f, &plan);
        submit(&mut whole, &[good.clone(), good.clone(), good.clone()]);
        assert!(state(&whole) == state(&s), "{policy}");
    }
}

#[test]
fn skipped_steps_are_left_out() {
    let f = Fixture::open("mlp_mnist");
    let plan = f.compile_gpu("model.onnx", "f32", SGD, "on_nonfinite = \"skip\"", false).plan;
    let mut s = session(&f, &plan);
    let (good, bad) = (batch(&f, &s, None), batch(&f, &s, Some(f32::INFINITY)));
    let reports = submit(&mut s, &[good.clone(), bad, good.clone()]);
    let skipped: Vec<bool> = reports.iter().map(|r| r.skipped).collect();
    assert_eq!(skipped, [false, true, false]);
    let mut other = session(&f, &plan);
    submit(&mut other, &[good.clone(), good]);
    let weights = |s: &Session| state(s).into_iter().filter(|t| !t.0.starts_with("machine."));
    assert!(weights(&s).eq(weights(&other)));
}
