//! Networks that a description of this machine is fitted to and tried on. They are in the program.

use crate::failure::Outcome;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Options};
use precast_plan::{Plan, Target};
use precast_runtime::data::{Batch, Wanted};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A network of the repository, in this program.
pub struct Network {
    pub name: &'static str,
    model: &'static [u8],
    /// Its extents, and the columns of its targets.
    dims: &'static str,
    targets: &'static str,
    optimizer: &'static str,
    /// Integers below this are the elements of its integer inputs.
    pub ids: u64,
}

/// What a description is tried on: those that documents speak of.
pub const TRIED: [Network; 5] = [
    digits("dims = { batch = 64 }"),
    bytes_gpt("dims = { batch = 8, seq = 128 }"),
    mlp_mnist("dims = { batch = 64 }"),
    cifar_cnn("dims = { batch = 32 }"),
    tiny_gpt("dims = { batch = 16, seq = 32 }"),
];

/// What a description is fitted to: three other networks, and those it is tried on at other extents.
pub const FITTED: [Network; 8] = [
    cifar_cnn_w32("dims = { batch = 16 }"),
    gpt_4x256("dims = { batch = 4, seq = 64 }"),
    tiny_nanogpt("dims = { s95 = 8, s75 = 32 }"),
    digits("dims = { batch = 32 }"),
    bytes_gpt("dims = { batch = 5, seq = 96 }"),
    mlp_mnist("dims = { batch = 96 }"),
    cifar_cnn("dims = { batch = 20 }"),
    tiny_gpt("dims = { batch = 24, seq = 24 }"),
];

const fn digits(dims: &'static str) -> Network {
    Network {
        name: "digits",
        model: include_bytes!("../../../examples/digits/model.onnx"),
        dims,
        targets: "labels = \"labels\"",
        optimizer: "kind = \"sgd\"\nlr = 0.01\nmomentum = 0.9",
        ids: 10,
    }
}

const fn bytes_gpt(dims: &'static str) -> Network {
    Network {
        name: "bytes_gpt",
        model: include_bytes!("../../../examples/bytes_gpt/model.onnx"),
        dims,
        targets: "targets = \"next\"",
        optimizer: "kind = \"adamw\"\nlr = 1e-4\nweight_decay = 0.1",
        ids: 256,
    }
}

const fn mlp_mnist(dims: &'static str) -> Network {
    Network {
        name: "mlp_mnist",
        model: include_bytes!("../../../tests/fixtures/mlp_mnist/model.onnx"),
        dims,
        targets: "targets = \"t\"",
        optimizer: "kind = \"sgd\"\nlr = 0.01\nmomentum = 0.9",
        ids: 10,
    }
}

const fn cifar_cnn(dims: &'static str) -> Network {
    Network {
        name: "cifar_cnn",
        model: include_bytes!("../../../tests/fixtures/cifar_cnn/model.onnx"),
        dims,
        targets: "targets = \"t\"",
        optimizer: "kind = \"sgd\"\nlr = 0.01\nmomentum = 0.9",
        ids: 10,
    }
}

const fn tiny_gpt(dims: &'static str) -> Network {
    Network {
        name: "tiny_gpt",
        model: include_bytes!("../../../tests/fixtures/tiny_gpt/model.onnx"),
        dims,
        targets: "targets = \"t\"",
        optimizer: "kind = \"adamw\"\nlr = 1e-4",
        ids: 64,
    }
}

const fn cifar_cnn_w32(dims: &'static str) -> Network {
    Network {
        name: "cifar_cnn_w32",
        model: include_bytes!("../../../tests/models/cifar_cnn_w32.ts.op17.train.onnx"),
        dims,
        targets: "labels = \"t\"",
        optimizer: "kind = \"adamw\"\nlr = 1e-4",
        ids: 10,
    }
}

const fn gpt_4x256(dims: &'static str) -> Network {
    Network {
        name: "gpt_4x256",
        model: include_bytes!("../../../tests/models/gpt_4x256.ts.op17.train.onnx"),
        dims,
        targets: "labels = \"t\"",
        optimizer: "kind = \"adamw\"\nlr = 1e-4",
        ids: 256,
    }
}

const fn tiny_nanogpt(dims: &'static str) -> Network {
    Network {
        name: "tiny_nanogpt",
        model: include_bytes!("../../../tests/models/tiny_nanogpt_sdpa.dynamo.op23.train.onnx"),
        dims,
        targets: "labels = \"t\"",
        optimizer: "kind = \"sgd\"\nlr = 0.01\nmomentum = 0.9",
        ids: 64,
    }
}

/// A folder for models and tables, as long as it is needed.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Outcome<Folder> {
        // Several of a process are apart.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("precast-calibrate-{}-{}", name.0, name.1));
        crate::output::make_folder(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing is lost where it stays.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Plans a network by a description. `policy` is one of a recipe's.
pub fn plan(network: &Network, table: &Target, policy: &str, folder: &Path) -> Outcome<Plan> {
    crate::output::write_file(&folder.join("model.onnx"), network.model)?;
    let text = toml::to_string(table).expect("a target is plain data");
    crate::output::write_file(&folder.join("table.toml"), text.as_bytes())?;
    let recipe = format!(
        "model = \"model.onnx\"\n[weights]\ninit = \"default\"\n[data]\n{}\ntargets = {{ {} }}\n[loss]\nkind = \
         \"cross_entropy\"\n[optimizer]\n{}\n[train]\nsteps = 100\n[precision]\npolicy = \"{policy}\"\n[target]\ntable = \"table.toml\"\n",
        network.dims, network.targets, network.optimizer
    );
    let recipe = Recipe::parse(folder.join("recipe.toml"), &recipe)?;
    let options = Options { total_steps: Some(100), ..crate::recipe_args::options() };
    Ok(pipeline::compile(&recipe, &options)?.plan)
}

/// Numbers between -1 and 1, and integers below `ids`.
pub fn batch(wanted: &[Wanted], ids: u64) -> Batch {
    let bytes = |w: &Wanted| -> Vec<u8> {
        let most = w.classes.map_or(ids, |c| c.count);
        (0..w.shape.iter().product::<u64>())
            .flat_map(|i| {
                let i = i.wrapping_mul(2_654_435_761) >> 7;
                let word = match w.dtype.is_real() {
                    true => u64::from(w.dtype.encode((i % 2001) as f32 / 1000.0 - 1.0)),
                    false => i % most,
                };
                word.to_le_bytes().into_iter().take(w.dtype.size())
            })
            .collect()
    };
    let tensors = wanted.iter().map(|w| (w.name.clone(), bytes(w))).collect();
    let rows = wanted.iter().filter_map(|w| w.shape.first().copied()).max().unwrap_or(1);
    Batch { tensors, rows }
}
