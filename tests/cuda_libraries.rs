//! cuDNN and cuBLASLt of the software device (a test tool, `tests/software_device`): gradients by
//! cuDNN's graphs, and what becomes of steps that a library offers to run and then refuses. The
//! command runs in processes of its own, whose environment asks for cuDNN and for refusals.

mod common;

use common::Fixture;
use precast_runtime::cuda::driver::{Context, Memory, Stream};
use precast_runtime::cuda::measure::Watch;
use precast_runtime::{TensorFile, WeightSource};
use precast_software_device::SoftwareDevice;
use std::cell::Cell;
use std::path::Path;

// Nothing is measured unless a test says so.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0");

const REFUSES: &str = "PRECAST_SOFTWARE_DEVICE_REFUSES";

/// A fixture's recipe in a folder.
struct Lab {
    f: Fixture,
    policy: &'static str,
    folder: tempfile::TempDir,
}

/// What the command said.
struct Said(String);

impl Said {
    /// Graphs of cuDNN and their plans, as the last binding of the plan counts them.
    fn counts(&self) -> [usize; 2] {
        let line = self.0.lines().rfind(|l| l.contains("graphs of cuDNN with"));
        let words: Vec<&str> = line.expect("cuDNN is asked").split_whitespace().collect();
        // Numbers before the two words that follow them.
        ["graphs", "plans"].map(|word| {
            let at = words.iter().position(|w| *w == word).expect("as it is written");
            words[at - 1].parse().expect("a number")
        })
    }

    /// Products of cuBLASLt, algorithms that were chosen for them, and proposals that were measured.
    fn products(&self) -> [usize; 3] {
        let line = self.0.lines().rfind(|l| l.contains(" products of cuBLASLt, "));
        let line = line.expect("cuBLASLt is asked");
        let numbers = line.split([' ', ',']).filter_map(|w| w.parse().ok());
        let all: Vec<usize> = numbers.collect();
        all[all.len() - 3..].try_into().expect("three numbers")
    }

    fn has(&self, words: &str) -> bool {
        self.0.contains(words)
    }

    /// Nothing of ours stood in for a library.
    fn by_libraries(&self) {
        for name in ["without cuDNN", "without cuBLASLt"] {
            assert!(!self.has(name), "{}", self.0);
        }
    }
}

impl Lab {
    fn new(name: &str, policy: &'static str) -> Lab {
        let f = Fixture::open(name);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut text, _) = f.recipe("model_static.onnx", policy, "kind = \"sgd\"\nlr = 0.1", "");
        for file in ["model_static.onnx", "batch.safetensors"] {
            let whole = f.folder.join(file).display().to_string();
            text = text.replace(&format!("\"{file}\""), &format!("\"{whole}\""));
        }
        std::fs::write(folder.path().join("recipe.toml"), text).expect("written");
        Lab { f, policy, folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gradients on the device, checked, and what was said.
    fn grad(&self, env: &[(&str, &str)]) -> Said {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_precast"));
        command.args(["-v", "grad", "recipe.toml", "--device", "cuda", "-o", "g.safetensors"]);
        command.current_dir(self.path()).env("PRECAST_CUDNN", "1").envs(env.iter().copied());
        let o = command.output().expect("the binary runs");
        let say = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(o.status.success(), "{}: {say}", self.policy);
        self.check(&say);
        Said(say)
    }

    /// As [`Lab::grad`], with candidates measured and remembered in this folder.
    fn tuned(&self, env: &[(&str, &str)]) -> Said {
        let cache = self.path().join("cache").display().to_string();
        self.grad(&[&[("PRECAST_CUDA_TUNE", "1"), ("PRECAST_CACHE", &cache)], env].concat())
    }

    fn check(&self, say: &str) {
        let far = self.f.yardstick();
        let have =
            TensorFile::open(&self.path().join("g.safetensors")).unwrap_or_else(|e| panic!("{e}"));
        let mut compared = 0;
        for name in have.names().into_iter().filter(|n| n.starts_with("grad.")) {
            let x = have.tensor(&name).unwrap_or_else(|e| panic!("{e}")).to_f32();
            let want = self.f.f64s(&name.replace("lm_head.weight", "wte.weight"));
            let d: f64 = x.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
            let away = (d / want.iter().map(|b| b * b).sum::<f64>()).sqrt();
            let allowed = if self.policy == "f32" { 5e-5 } else { 2.0 * far(&name) };
            assert!(away <= allowed, "{name}: {away:.1e}, allowed {allowed:.1e}\n{say}");
            compared += 1;
        }
        assert!(compared > 3, "{compared} gradients");
    }
}

/// Convolutions and attention as cuDNN's graphs, which the software device runs by their definitions.
#[test]
fn gradients_by_cudnn() {
    for (name, policy) in [("cifar_cnn", "f32"), ("cifar_cnn", "bf16")] {
        let said = Lab::new(name, policy).grad(&[]);
        said.by_libraries();
        let [graphs, plans] = said.counts();
        assert!(graphs > 0 && plans >= graphs, "{graphs} graphs, {plans} plans");
    }
    let lab = Lab::new("tiny_gpt", "bf16");
    let said = lab.tuned(&[]);
    said.by_libraries();
    let [graphs, plans] = said.counts();
    assert!(plans > graphs, "several plans of a graph are measured: {plans} of {graphs}");
    assert_eq!(lab.tuned(&[]).counts(), [graphs; 2], "what was fastest is built alone");
}

/// What `precast doctor` says with a driver of CUDA 12.4 and libraries in these folders.
fn doctor(folders: &Path) -> serde_json::Value {
    let o = std::process::Command::new(env!("CARGO_BIN_EXE_precast"))
        .args(["doctor", "--json"])
        .env("PRECAST_SOFTWARE_DEVICE_DRIVER", "12040")
        .env("PRECAST_CUDA_PATH", folders)
        // Packages of this machine may hold the real ones.
        .env("PATH", folders)
        .env_remove("VIRTUAL_ENV")
        .env_remove("CONDA_PREFIX")
        .output()
        .expect("the binary runs");
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    serde_json::from_slice(&o.stdout).expect("one object")
}

/// Libraries of CUDA 13 are no use to a driver of CUDA 12, which is said; those of CUDA 12 are taken.
#[test]
fn libraries_of_a_later_cuda_than_the_drivers_are_passed_over() {
    let installed = std::env::var("PRECAST_SOFTWARE_DEVICE_FOLDER").expect("it was started anew");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let said = doctor(folder.path());
    let of = |said: &serde_json::Value, name: &str| said["cuda"]["libraries"][name].clone();
    assert_eq!(of(&said, "driver")["version"], "CUDA 12.4");
    let words = "of CUDA 13, and the driver runs CUDA 12.4 and earlier";
    for (name, package) in [("NVRTC", "nvidia-cuda-nvrtc-cu12"), ("cuBLASLt", "nvidia-cublas-cu12")]
    {
        let found = of(&said, name);
        // A toolkit of CUDA 12 of this machine is found otherwise.
        if found["path"].is_null() {
            assert!(found["error"].as_str().expect("an error").contains(words), "{found}");
            assert!(found["help"].as_str().expect("help").contains(package), "{found}");
            assert_eq!(said["backends"], serde_json::json!(["cpu"]));
        }
    }
    let cudnn = of(&said, "cuDNN");
    let error = cudnn["error"].as_str().expect("built for CUDA 13");
    assert!(error.contains("of CUDA 13.0, and the driver runs CUDA 12.4 and earlier"), "{error}");
    // The software device by the names that releases of CUDA 12 have.
    let library = std::fs::canonicalize(Path::new(&installed).join("libcuda.so.1"));
    let library = library.expect("it is installed");
    for name in ["libnvrtc.so.12", "libcublasLt.so.12"] {
        std::os::unix::fs::symlink(&library, folder.path().join(name)).expect("a link");
    }
    let said = doctor(folder.path());
    for (name, file) in [("NVRTC", "libnvrtc.so.12"), ("cuBLASLt", "libcublasLt.so.12")] {
        let path = folder.path().join(file).display().to_string();
        assert_eq!(of(&said, name)["path"], path, "{said}");
    }
    assert_eq!(said["backends"], serde_json::json!(["cpu", "cuda"]));
}

/// One refused candidate, whichever was remembered: another takes its place.
#[test]
fn a_refused_candidate_gives_way_to_another() {
    let lab = Lab::new("tiny_gpt", "bf16");
    lab.tuned(&[]).by_libraries();
    for words in ["cudnn:0,cublas:0", "cudnn:1,cublas:1", "cublas:2"] {
        lab.tuned(&[(REFUSES, words)]).by_libraries();
    }
    // Nothing is measured, and the first is refused.
    lab.grad(&[(REFUSES, "cudnn:0,cublas:0")]).by_libraries();
}

/// A library that offers everything and runs nothing: kernels of ours, said once, and no memory of it.
#[test]
fn libraries_that_refuse_everything_are_replaced() {
    let lab = Lab::new("tiny_gpt", "bf16");
    let graphs = lab.tuned(&[]).counts()[0];
    for tuned in [false, true] {
        let env = [(REFUSES, "cudnn,cublas")];
        let said = if tuned { lab.tuned(&env) } else { lab.grad(&env) };
        for words in ["(cuDNN refuses to run it: ", "(cuBLASLt refuses to run it: "] {
            assert!(said.has(words), "{}", said.0);
        }
        for words in ["steps without cuDNN", "products without cuBLASLt"] {
            let lines = said.0.lines().filter(|l| l.contains(words)).count();
            assert_eq!(lines, 1, "{words}: {}", said.0);
        }
    }
    let said = lab.tuned(&[]);
    said.by_libraries();
    let [again, plans] = said.counts();
    assert!(again == graphs && plans > again, "all are measured again: {plans} of {again}");
    let cnn = Lab::new("cifar_cnn", "bf16");
    let said = cnn.grad(&[(REFUSES, "cudnn")]);
    assert!(said.has("without cuDNN (cuDNN refuses"), "{}", said.0);
    assert!(!said.has("without cuBLASLt"), "{}", said.0);
}

/// What a library runs and refuses to have captured: another candidate, or kernels of ours, said once
/// and remembered by nothing; never a step that is not captured.
#[test]
fn what_a_library_does_not_capture_is_replaced() {
    let lab = Lab::new("tiny_gpt", "bf16");
    let graphs = lab.tuned(&[]).counts()[0];
    for words in ["captured-cudnn:0,captured-cublas:0", "captured-cudnn#2,captured-cublas#2"] {
        let said = lab.tuned(&[(REFUSES, words)]);
        said.by_libraries();
        assert!(!said.has("kernel by kernel"), "{}", said.0);
    }
    let refused = (REFUSES, "captured-cudnn,captured-cublas");
    // Each seed of the device has other times, and so another order in which candidates are tried.
    let seeds = ["1", "2", "3", "4"].map(|n| [refused, ("PRECAST_SOFTWARE_DEVICE_SEED", n)]);
    let tuned = seeds.iter().map(|env| lab.tuned(env));
    for said in tuned.chain([lab.grad(&[refused])]) {
        for words in [
            "steps without cuDNN (cuDNN refuses to run it: while it is captured: ",
            "products without cuBLASLt (cuBLASLt refuses to run it: while it is captured: ",
        ] {
            let lines = said.0.lines().filter(|l| l.contains(words)).count();
            assert_eq!(lines, 1, "{words}: {}", said.0);
        }
        assert!(!said.has("kernel by kernel"), "{}", said.0);
    }
    let said = lab.tuned(&[]);
    said.by_libraries();
    let [again, plans] = said.counts();
    assert!(again == graphs && plans > again, "all are measured again: {plans} of {again}");
    // Where nothing is captured, nothing is asked to be.
    let uncaptured = [(REFUSES, "captured-cudnn,captured-cublas"), ("PRECAST_CUDA_GRAPH", "0")];
    lab.tuned(&uncaptured).by_libraries();
}

/// What a graph may want of workspace depends on the device's memory and on the plan; where other
/// programs hold that memory, engines that want less run, and it is said.
#[test]
fn workspaces_fit_beside_the_plan() {
    let lab = Lab::new("tiny_gpt", "bf16");
    let sgd = "kind = \"sgd\"\nlr = 0.1";
    let plan = lab.f.compile_gpu("model_static.onnx", "bf16", sgd, "", true).plan;
    let input = |t: &precast_plan::Tensor| match t.storage {
        precast_plan::Storage::Input { offset } => {
            offset + t.shape.iter().product::<u64>() * t.dtype.size() as u64
        }
        _ => 0,
    };
    let inputs = plan.tensors.iter().map(input).max().expect("it has tensors");
    // The workspace of cuBLASLt is in it.
    let taken = plan.arena_bytes + plan.persistent_bytes + 3 * inputs + (32 << 20);
    let [graphs, plans] = lab.tuned(&[]).counts();
    assert_eq!(plans, 3 * graphs, "an engine without workspace, and one that wants 2 MiB, twice");
    // A little more than the plan and what is left aside: no engine may have 2 MiB.
    let memory = (taken * 16 / 15 + (1 << 20)).to_string();
    let said = lab.tuned(&[("PRECAST_SOFTWARE_DEVICE_MEMORY", &memory)]);
    said.by_libraries();
    assert_eq!(said.counts(), [graphs; 2]);
    assert!(!said.has("memory of the device is short"), "{}", said.0);
    // Room in all, and not now.
    let free = (4u64 << 30) - (taken + (3 << 20) / 2);
    let said = lab.tuned(&[("PRECAST_SOFTWARE_DEVICE_TAKEN", &free.to_string())]);
    said.by_libraries();
    assert!(said.has("memory of the device is short: cuDNN runs without engines"), "{}", said.0);
}

/// Equal products share what was measured once; products of the evaluation alone are not measured.
#[test]
fn equal_products_are_measured_once() {
    let lab = Lab::new("tiny_gpt", "bf16");
    let [products, algorithms, measured] = lab.tuned(&[]).products();
    // Two layers have the same products, but for how far the smallest tensors are aligned.
    assert!(algorithms < products, "{algorithms} algorithms for {products} products");
    assert!(measured > 0 && measured < 3 * algorithms, "{measured} of three proposals for each");
    assert_eq!(lab.tuned(&[]).products(), [products, algorithms, 0], "and remembered");
    let untuned = lab.grad(&[("PRECAST_CUDA_TUNE", "0")]).products();
    assert_eq!(untuned, [products, algorithms, 0]);
}

/// A step that the device skips is replayed on the processor, with the same plan.
#[test]
fn a_step_that_the_device_skips_is_blamed() {
    let lab = tempfile::tempdir().expect("a temporary folder");
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/overflow");
    for file in ["model.pir", "data.csv", "recipe.toml"] {
        std::fs::copy(from.join(file), lab.path().join(file)).expect("the model is there");
    }
    let lines = |args: &[&str]| -> Vec<serde_json::Value> {
        let o = std::process::Command::new(env!("CARGO_BIN_EXE_precast"))
            .args(["train", "recipe.toml", "--device", "cuda", "--log", "log.jsonl"])
            .args(args)
            .current_dir(lab.path())
            .output()
            .expect("the binary runs");
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        let log = std::fs::read_to_string(lab.path().join("log.jsonl")).expect("the log");
        let lines: Vec<serde_json::Value> =
            log.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        let skipped: Vec<bool> = lines.iter().map(|l| l["skipped"] == true).collect();
        assert_eq!(skipped, [true, false, true, false], "{log}");
        lines
    };
    let blamed = |lines: &[serde_json::Value]| -> Vec<bool> {
        lines.iter().map(|l| l.get("blame").is_some()).collect()
    };
    // A GPU waits while the processor replays, so only the first is unless a person asks.
    assert_eq!(blamed(&lines(&[])), [true, false, false, false]);
    let lines = lines(&["--blame", "9"]);
    assert_eq!(blamed(&lines), [true, false, true, false]);
    for line in [&lines[0], &lines[2]] {
        let blame = &line["blame"];
        // cuBLASLt stores the product before the activation, so it is the first to overflow.
        assert_eq!(blame["op"], "fc1", "{line}");
        assert_eq!(blame["index"], serde_json::json!([5, 2]), "{line}");
        assert_eq!((&blame["value"], &blame["side"]), (&"inf".into(), &"forward".into()), "{line}");
    }
}

/// A candidate is measured as it will run: as a graph where steps are, several runs of a short one.
#[test]
fn short_work_is_measured_many_times_at_once() {
    let device = SoftwareDevice::open().expect("the software device is built");
    let context = Context::new(0).unwrap_or_else(|e| panic!("{e}"));
    let stream = Stream::new(&context).unwrap_or_else(|e| panic!("{e}"));
    let memory = Memory::new(&context, 64).unwrap_or_else(|e| panic!("{e}")).expect("64 bytes");
    let calls = Cell::new(0);
    let work = || {
        calls.set(calls.get() + 1);
        stream.clear(memory.address, 64)
    };
    for captured in [true, false] {
        let watch = Watch::new(&context, captured);
        let mut most = 0;
        for measurement in 0..200 {
            let (before, replays) = (calls.get(), device.counts()[2]);
            let seconds = watch.time(&stream, &work).unwrap_or_else(|e| panic!("{e}"));
            assert!(seconds > 0.0 && seconds < 1.0, "{seconds} s");
            let (runs, replays) = (calls.get() - before, device.counts()[2] - replays);
            assert_eq!(replays, if captured { 4 } else { 0 });
            if measurement == 0 {
                assert!(runs > 5, "an idle device is warmed first: {runs} runs");
                continue;
            }
            // One run says how many make a window; then as many, once for the graph or four times.
            let each = if captured { runs - 1 } else { (runs - 1) / 4 };
            assert!(captured || (runs - 1) % 4 == 0, "{runs} runs");
            assert!((1..=50).contains(&each), "{each} runs in a window");
            most = most.max(each);
        }
        assert!(most > 1, "the software device draws some times that are short");
    }
    // Without room for a graph it is measured all the same.
    device.refuse("instantiate");
    let watch = Watch::new(&context, true);
    let replays = device.counts()[2];
    watch.time(&stream, &work).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(device.counts()[2], replays);
    device.refuse("");
}

/// A plan that was made for another board runs, and a person is told of it.
#[test]
fn a_plan_for_another_board_is_told_of() {
    let lab = Lab::new("tiny_gpt", "f32");
    let warned = |device: &str| {
        let o = std::process::Command::new(env!("CARGO_BIN_EXE_precast"))
            .args(["grad", "recipe.toml", "--device", device, "-o", "g.safetensors"])
            .current_dir(lab.path())
            .output()
            .expect("the binary runs");
        let say = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(o.status.success(), "{device}: {say}");
        say
    };
    let say = warned("b200");
    assert!(say.contains("P0621") && say.contains("made for `b200`, and runs on"), "{say}");
    assert!(say.contains("`--device b200` of the command line"), "{say}");
    for device in ["cuda", "sm_90"] {
        let say = warned(device);
        assert!(!say.contains("P0621"), "{device}: {say}");
    }
}

/// An id outside its table is told by its position, on a device as on a processor.
#[test]
fn an_id_outside_its_table_has_a_position() {
    let lab = Lab::new("tiny_gpt", "f32");
    let batch = TensorFile::open(&lab.f.folder.join("batch.safetensors")).expect("complete");
    let tensors = batch.names().into_iter().map(|name| {
        let t = batch.tensor(&name).unwrap_or_else(|e| panic!("{e}"));
        let precast_runtime::tensors::Element::Plan(dtype) = t.element else {
            panic!("{name} is {:?}", t.element)
        };
        let mut bytes = t.bytes.to_vec();
        if name == "in.input_ids" {
            bytes[17 * 8..18 * 8].copy_from_slice(&9999i64.to_le_bytes());
        }
        (name.clone(), (dtype, t.shape.clone(), bytes))
    });
    let none = std::collections::BTreeMap::new();
    let file = lab.path().join("batch.safetensors");
    precast_runtime::tensors::write_tensors(&file, &none, &tensors.collect())
        .unwrap_or_else(|e| panic!("{e}"));
    let recipe = std::fs::read_to_string(lab.path().join("recipe.toml")).expect("written");
    let whole = lab.f.folder.join("batch.safetensors").display().to_string();
    let recipe = recipe.replace(&whole, &file.display().to_string());
    std::fs::write(lab.path().join("recipe.toml"), recipe).expect("written");
    for device in ["cpu", "cuda"] {
        let o = std::process::Command::new(env!("CARGO_BIN_EXE_precast"))
            .args(["grad", "recipe.toml", "--device", device, "-o", "g.safetensors"])
            .current_dir(lab.path())
            .output()
            .expect("the binary runs");
        let say = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(!o.status.success(), "{device}: {say}");
        assert!(say.contains("R0112") && say.contains("at position 17 "), "{device}: {say}");
    }
}
