//! The fixtures of `tests/fixtures`: recipes over them, sessions, and their references.

#![allow(dead_code, reason = "every test binary uses a part")]

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::ir::Graph;
use precast_compiler::pipeline::{self, Compiled};
use precast_compiler::precision::{Policy, PrecisionOptions};
use precast_compiler::schedule::Capabilities;
use precast_compiler::{egraph, emit, simplify};
use precast_plan::{Plan, Role, Storage, Target};
use precast_runtime::cuda::CudaBackend;
use precast_runtime::data::{Batch, batch_of};
use precast_runtime::{
    HostTensor, ModelWeights, Options, Session, StepReport, TensorFile, WeightSource,
};
use std::path::{Path, PathBuf};

/// Where the fixtures are, for test programs that were carried to another machine.
pub const FIXTURES_VARIABLE: &str = "PRECAST_FIXTURES";

pub fn folder(name: &str) -> PathBuf {
    match std::env::var_os(FIXTURES_VARIABLE) {
        Some(fixtures) => Path::new(&fixtures).join(name),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name),
    }
}

pub struct Fixture {
    pub folder: PathBuf,
    pub batch: TensorFile,
    pub reference: TensorFile,
}

impl Fixture {
    pub fn open(name: &str) -> Fixture {
        let folder = folder(name);
        let file = |f: &str| TensorFile::open(&folder.join(f)).expect("the fixture is complete");
        Fixture {
            batch: file("batch.safetensors"),
            reference: file("reference.safetensors"),
            folder,
        }
    }

    /// The fixture `two_masks`: `full`, where queries have no key, or `open`.
    pub fn open_two_masks(kind: &str) -> Fixture {
        let f = Fixture::open("two_masks");
        match kind {
            "full" => f,
            _ => {
                let path = f.folder.join(format!("{kind}.safetensors"));
                Fixture { batch: TensorFile::open(&path).expect("complete"), ..f }
            }
        }
    }

    pub fn compile(
        &self,
        model: &str,
        policy: &str,
        optimizer: &str,
        keep_gradients: bool,
    ) -> Compiled {
        self.compile_with(model, policy, optimizer, "", keep_gradients)
    }

    /// `train` holds further lines of the section `[train]`.
    pub fn compile_with(
        &self,
        model: &str,
        policy: &str,
        optimizer: &str,
        train: &str,
        keep_gradients: bool,
    ) -> Compiled {
        let (text, options) = self.recipe(model, policy, optimizer, train);
        let recipe =
            Recipe::parse(self.folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
        let options = pipeline::Options { keep_gradients, ..options };
        pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{model} {policy}: {e}"))
    }

    /// As [`Fixture::compile_with`], for a GPU of compute capability 9.0.
    pub fn compile_gpu(
        &self,
        model: &str,
        policy: &str,
        optimizer: &str,
        train: &str,
        keep_gradients: bool,
    ) -> Compiled {
        let train = format!("{train}\n[target]\ndevice = \"sm_90\"");
        self.compile_with(model, policy, optimizer, &train, keep_gradients)
    }

    /// Relative L2 distances of the gradients a session has computed from PyTorch's in f64.
    pub fn gradient_errors(&self, session: &Session) -> Vec<(String, f64)> {
        self.gradient_errors_of(session, "")
    }

    /// [`Fixture::gradient_errors`] of one of several models, whose reference's names begin with
    /// `prefix`.
    pub fn gradient_errors_of(&self, session: &Session, prefix: &str) -> Vec<(String, f64)> {
        let names = session.plan().results.iter().map(|r| r.name.clone());
        let gradients = names.filter(|n| n.starts_with("grad."));
        gradients
            .map(|name| {
                let have = session.result(&name).expect("listed").to_f32();
                let known = name.replace("lm_head.weight", "wte.weight");
                let want = self.f64s(&format!("{prefix}{known}"));
                let d: f64 = have.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
                let n: f64 = want.iter().map(|b| b * b).sum();
                (name, (d / n).sqrt())
            })
            .collect()
    }

    /// Holds the gradients that a session of the fixture `activations` has computed against PyTorch's.
    pub fn check_activations(&self, session: &Session, allowed: impl Fn(&str) -> f64) {
        // Two of the head, four a branch, PReLU's slope.
        self.check_gradients(session, 2 + 17 * 4 + 1, allowed);
    }

    /// Holds all `count` gradients that a session has computed against PyTorch's.
    pub fn check_gradients(&self, session: &Session, count: usize, allowed: impl Fn(&str) -> f64) {
        let errors = self.gradient_errors(session);
        assert_eq!(errors.len(), count, "gradients");
        let faults: Vec<String> = errors
            .iter()
            .filter(|(name, e)| e.is_nan() || *e > allowed(name))
            .map(|(name, e)| format!("{name}: {e:.2e}, allowed {:.2e}", allowed(name)))
            .collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    /// Holds all gradients that a session has computed, so many, against PyTorch's.
    pub fn check_all(&self, session: &Session, count: usize, allowed: f64) {
        let errors = self.gradient_errors(session);
        assert_eq!(errors.len(), count, "{errors:?}");
        let faults: Vec<String> = errors
            .iter()
            .filter(|(_, e)| e.is_nan() || *e > allowed)
            .map(|(name, e)| format!("{name}: {e:.2e}"))
            .collect();
        assert!(faults.is_empty(), "allowed {allowed:.1e}\n{}", faults.join("\n"));
    }

    /// PyTorch's own distance between bf16 autocast and f64, by gradient.
    pub fn yardstick(&self) -> impl Fn(&str) -> f64 + use<> {
        let text = std::fs::read_to_string(self.folder.join("meta.json"))
            .expect("the fixture is complete");
        let meta: serde_json::Value = serde_json::from_str(&text).expect("the fixture is JSON");
        move |name: &str| {
            let name = name.strip_prefix("grad.").expect("a gradient's name");
            let name = name.replace("lm_head.weight", "wte.weight");
            meta["grad_rel_l2_err_vs_f64"]["bf16"][name].as_f64().expect("listed")
        }
    }

    /// What 16 bits may cost a gradient of the fixture `activations`: twice PyTorch's largest distance
    /// among the same parameters of all branches, since whether a value falls on the other side of a
    /// kink is a draw; of the one single number 5 %.
    pub fn allowed_by_kind(&self) -> impl Fn(&str) -> f64 + use<> {
        let text = std::fs::read_to_string(self.folder.join("meta.json"))
            .expect("the fixture is complete");
        let meta: serde_json::Value = serde_json::from_str(&text).expect("the fixture is JSON");
        let kind = |name: &str| {
            let words: Vec<&str> = name.split('.').collect();
            (words[0].to_string(), words[words.len() - 1].to_string())
        };
        let far = meta["grad_rel_l2_err_vs_f64"]["bf16"].as_object().expect("listed");
        let far: Vec<_> =
            far.iter().map(|(n, d)| (kind(n), d.as_f64().expect("a number"))).collect();
        move |name: &str| {
            let kind = kind(name.strip_prefix("grad.").expect("a gradient's name"));
            let like = far.iter().filter(|(k, _)| *k == kind).map(|(_, d)| *d);
            if kind.0 == "act" { 0.05 } else { 2.0 * like.fold(0.0, f64::max) }
        }
    }

    /// A recipe's text, and the extents of its inputs.
    pub fn recipe(
        &self,
        model: &str,
        policy: &str,
        optimizer: &str,
        train: &str,
    ) -> (String, pipeline::Options) {
        let names = self.batch.names();
        let inputs: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix("in.")).collect();
        let fed: Vec<String> = inputs.iter().map(|n| format!("{n} = \"in.{n}\"")).collect();
        let fed = fed.join(", ");
        let text = format!(
            "model = \"{model}\"\n\
             [data]\nformat = \"safetensors\"\nfile = \"batch.safetensors\"\n\
             inputs = {{ {fed} }}\ntargets = {{ targets = \"tgt.targets\" }}\n\
             [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
             ignore_index = -100\n\
             [optimizer]\n{optimizer}\n\
             [precision]\npolicy = \"{policy}\"\n\
             [train]\nsteps = 20\n{train}\n"
        );
        let mut options = pipeline::Options::default();
        let inputs = inputs.iter().map(|n| (*n, format!("in.{n}")));
        for (name, key) in inputs.chain([("targets", "tgt.targets".into())]) {
            let shape = self.batch.tensor(&key).expect("listed").shape;
            let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
            if name == "targets" {
                options.target_rows.insert(name.into(), shape[1..].to_vec());
            }
            options.shapes.insert(name.into(), shape);
        }
        (text, options)
    }

    pub fn session(&self, plan: Plan) -> (Session, Batch) {
        self.session_on(plan, 0)
    }

    /// With so many threads; 0: every core.
    pub fn session_on(&self, plan: Plan, threads: usize) -> (Session, Batch) {
        let weights = self.weights(&plan);
        let options = Options { threads, ..Options::default() };
        let session = Session::new(plan, &weights, &options).unwrap_or_else(|e| panic!("{e}"));
        let batch = self.batch(&session);
        (session, batch)
    }

    /// On the first GPU; without `capture` its steps are launched one by one.
    pub fn session_captured(&self, plan: Plan, capture: bool) -> Session {
        let weights = self.weights(&plan);
        let backend = CudaBackend::with(&plan, 0, capture).unwrap_or_else(|e| panic!("{e}"));
        let session = Session::on(plan, Box::new(backend), &weights, &Options::default());
        session.unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn weights(&self, plan: &Plan) -> ModelWeights {
        ModelWeights::for_plan(plan, &self.folder, None).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The fixture's one batch, as a session wants it.
    pub fn batch(&self, session: &Session) -> Batch {
        let wanted = session.wanted();
        let tensors: Vec<_> = wanted
            .iter()
            .map(|w| {
                let key = if w.name == "targets" {
                    "tgt.targets".into()
                } else {
                    format!("in.{}", w.name)
                };
                (w.name.as_str(), self.batch.tensor(&key).expect("listed"))
            })
            .collect();
        let tensors: Vec<(&str, HostTensor)> = tensors;
        batch_of(&wanted, &tensors).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn f64s(&self, name: &str) -> Vec<f64> {
        let t = self.reference.tensor(name).unwrap_or_else(|e| panic!("{e}"));
        match t.bytes.len() / t.shape.iter().product::<u64>().max(1) as usize {
            8 => {
                t.bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            _ => t.to_f32().into_iter().map(f64::from).collect(),
        }
    }
}

/// Tensors that outlive a step and have such a role, with their bytes.
pub fn kept(s: &Session, role: impl Fn(Role) -> bool) -> Vec<(String, Vec<u8>)> {
    let kept = s.plan().tensors.iter().filter(|t| match &t.storage {
        Storage::Persistent { role: r, .. } => role(*r),
        _ => false,
    });
    let read = |name: &str| s.read(name).unwrap_or_else(|e| panic!("{e}")).bytes.to_vec();
    kept.map(|t| (t.name.clone(), read(&t.name))).collect()
}

/// Step, bits of the loss, of the scale, skipped, bits of the norm.
pub type Said = (u64, u32, Option<u32>, bool, Option<u32>);

/// What reports say, without the time it took.
pub fn said(reports: &[StepReport]) -> Vec<Said> {
    let said = |r: &StepReport| {
        let bits = |x: Option<f32>| x.map(f32::to_bits);
        (r.step, r.loss.to_bits(), bits(r.scale), r.skipped, bits(r.grad_norm))
    };
    reports.iter().map(said).collect()
}

/// Lowers a training graph for a generic CPU, formats by `policy`.
pub fn lower(train: &Graph, policy: Policy) -> Plan {
    lowered(train, policy).1
}

/// As [`lower`], with the graph that was scheduled.
pub fn lowered(train: &Graph, policy: Policy) -> (Graph, Plan) {
    lowered_for("cpu-generic", train, policy)
}

/// As [`lowered`], for a target of a shipped description.
pub fn lowered_for(target: &str, train: &Graph, policy: Policy) -> (Graph, Plan) {
    let target = Target::shipped(target).expect("shipped");
    let train = simplify::simplify(train).unwrap_or_else(|e| panic!("{e}"));
    let modes = egraph::Modes { plain: Some(&train), scaled: None };
    let outcome = egraph::run(modes, &PrecisionOptions::new(policy), &target)
        .unwrap_or_else(|e| panic!("{e}"));
    let options = emit::Options {
        capabilities: Capabilities::of(&target, false),
        accumulate: 1,
        seed: 0,
        target: target.summary(),
        price: None,
    };
    let plan = emit::lower(&outcome.graph, None, &options).unwrap_or_else(|e| panic!("{e}"));
    if let Err(e) = plan.validate() {
        panic!("{e:?}\n{}", precast_compiler::text::print(&outcome.graph));
    }
    (outcome.graph, plan)
}

/// What [`check_frozen_rows`] wants under `[train]`, for `padding.onnx` of the fixture `origins`.
pub const FROZEN_ROWS: &str = "freeze_rows = { \"e.weight\" = [-1, 3], \"h.bias\" = [1] }\n\
                               ema = 0.9\nclip_norm = 0.5";

/// Takes four steps, after which the frozen rows are what they were, to the bit, and no others.
pub fn check_frozen_rows(mut session: Session, batch: &Batch) {
    let tensors = ["e.weight", "h.bias", "ema.e.weight"];
    let read = |s: &Session| tensors.map(|n| s.read(n).unwrap_or_else(|e| panic!("{e}")).to_f32());
    let before = read(&session);
    for _ in 0..4 {
        session.step(std::slice::from_ref(batch)).unwrap_or_else(|e| panic!("{e}"));
    }
    let after = read(&session);
    for ((name, a), b) in tensors.iter().zip(&before).zip(&after) {
        let columns = a.len() / if name.ends_with("weight") { 10 } else { 3 };
        for (row, (a, b)) in a.chunks(columns).zip(b.chunks(columns)).enumerate() {
            let still = match *name {
                "h.bias" => row == 1,
                _ => row == 3 || row == 9,
            };
            assert_eq!(a == b, still, "{name}, row {row}: {a:?} and {b:?}");
        }
    }
}

/// The parts of the fixture `two_masks`.
pub const TWO_MASKS: [&str; 2] = ["full", "open"];

/// Holds the gradients of the fixture `two_masks` against PyTorch's: at most twice as far from f64 as
/// PyTorch under autocast is for any parameter of the same kind, since one alone may be near by chance.
pub fn check_two_masks(f: &Fixture, session: &Session, kind: &str, policy: &str) {
    let errors = f.gradient_errors_of(session, &format!("{kind}."));
    let listed = f.reference.names();
    let grads = listed.iter().filter(|n| n.starts_with(&format!("{kind}.grad.")));
    assert_eq!(errors.len(), grads.count(), "{errors:?}");
    let like = |name: &str| {
        let words: Vec<&str> = name.split('.').collect();
        (words[0].to_string(), words[words.len() - 1].to_string())
    };
    let format = if policy == "auto" { "bf16" } else { policy };
    let prefix = format!("{kind}.far.{format}.");
    let far: Vec<((String, String), f64)> = listed
        .iter()
        .filter_map(|n| n.strip_prefix(&prefix).map(|p| (like(p), f.f64s(n)[0])))
        .collect();
    let faults: Vec<String> = errors
        .iter()
        .filter_map(|(name, e)| {
            let kind = like(name.strip_prefix("grad.").expect("a gradient"));
            let most = far.iter().filter(|(k, _)| *k == kind).map(|(_, d)| *d).fold(0.0, f64::max);
            let allowed = (2.0 * most).max(if policy == "f32" { 1e-5 } else { 0.0 });
            let fails = e.is_nan() || *e > allowed;
            fails.then(|| format!("{name}: {e:.2e}, PyTorch {most:.2e}"))
        })
        .collect();
    assert!(faults.is_empty(), "{kind} {policy}:\n{}", faults.join("\n"));
}

/// Holds the gradients that a session of the fixture `integers` has computed against PyTorch's.
pub fn check_integers(f: &Fixture, session: &Session, prefix: &str) {
    let errors = f.gradient_errors_of(session, prefix);
    let listed = f.reference.names().iter().filter(|n| n.starts_with(prefix)).count();
    assert_eq!(errors.len(), listed - 1, "all but the loss: {errors:?}");
    let faults: Vec<String> = errors
        .iter()
        .filter(|(_, e)| e.is_nan() || *e > 1e-5)
        .map(|(name, e)| format!("{prefix}{name}: {e:.2e}"))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
