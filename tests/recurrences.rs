//! LSTM, GRU and RNN in every form against PyTorch; `tests/peers/make_recurrences.py` wrote the graphs
//! and gradients.

mod common;

use common::Fixture;

const SGD: &str = "kind = \"sgd\"\nlr = 0.5";

/// Gradients of one step, by name, as bits and as distances from f64.
fn gradients(model: &str, policy: &str, threads: usize) -> (Vec<Vec<u32>>, Vec<(String, f64)>) {
    let f = Fixture::open("recurrences");
    let plan = f.compile(model, policy, SGD, true).plan;
    let (mut session, batch) = f.session_on(plan, threads);
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    let prefix = match model {
        "options.onnx" => "options.",
        "dynamo.onnx" => "dynamo.",
        _ => "",
    };
    let names = session.plan().results.iter().map(|r| r.name.clone());
    let bits = names
        .filter(|n| n.starts_with("grad."))
        .map(|n| session.result(&n).expect("listed").to_f32().iter().map(|x| x.to_bits()).collect())
        .collect();
    (bits, f.gradient_errors_of(&session, prefix))
}

fn check(model: &str, policy: &str, allowed: f64, count: usize) {
    let (_, errors) = gradients(model, policy, 0);
    assert_eq!(errors.len(), count, "{errors:?}");
    let faults: Vec<_> = errors.iter().filter(|(_, e)| e.is_nan() || *e > allowed).collect();
    assert!(faults.is_empty(), "{model} in {policy}, more than {allowed:.0e}: {faults:?}");
}

/// Eight a layer and direction pair with biases, the learned states and the head.
const OF_TORCH: usize = 16 + 4 + 1 + 2 + 8 + 8 + 4 + 16 + 4 + 2;
/// W, R, B and states of five nodes, peepholes of two, and the head.
const OF_ONNX: usize = 5 * 4 + 2 * 2 + 1;

#[test]
fn torch_modules_f32() {
    check("model.onnx", "f32", 1e-5, OF_TORCH);
}

#[test]
fn torch_modules_in_16_bits() {
    check("model.onnx", "bf16", 6e-2, OF_TORCH);
    check("model.onnx", "f16", 4e-3, OF_TORCH);
}

#[test]
fn options_of_onnx_f32() {
    check("options.onnx", "f32", 1e-5, OF_ONNX);
}

#[test]
fn options_of_onnx_in_16_bits() {
    check("options.onnx", "bf16", 6e-2, OF_ONNX);
    check("options.onnx", "f16", 4e-3, OF_ONNX);
}

#[test]
fn the_same_bits_with_any_number_of_threads() {
    for model in ["model.onnx", "options.onnx"] {
        for policy in ["f32", "bf16"] {
            let one = gradients(model, policy, 1).0;
            for threads in [2, 3, 7] {
                assert!(one == gradients(model, policy, threads).0, "{model} {policy} {threads}");
            }
        }
    }
}

/// torch.export with its optimiser off: names stay, and RNN is written step by step.
#[test]
fn what_torch_export_writes_f32() {
    check("dynamo.onnx", "f32", 1e-5, OF_TORCH);
}

/// All steps of time are one kernel of the plan.
#[test]
fn a_recurrence_is_one_kernel_each_way() {
    let f = Fixture::open("recurrences");
    let plan = f.compile("model.onnx", "f32", SGD, false).plan;
    let count = |grad: bool| {
        let of = |k: &precast_plan::Kernel| match k {
            precast_plan::Kernel::Recurrence(_) => !grad,
            precast_plan::Kernel::RecurrenceGrad(_) => grad,
            _ => false,
        };
        plan.micro.iter().filter(|s| of(&s.kernel)).count()
    };
    // Two layers of the deep LSTM, three more, two of the deep GRU, one more, two and one of RNN.
    assert_eq!((count(false), count(true)), (11, 11), "{plan}");
}
