//! The runs that are interrupted, and what each comes to where nothing interrupts it.

use super::check::{Log, Tensors, read_log, read_tensors};
use crate::small;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One recipe in a folder of its own.
pub struct Lab {
    pub name: &'static str,
    pub binary: PathBuf,
    pub folder: PathBuf,
    /// The file that the run reads while it runs, and what is in it.
    pub data: PathBuf,
    pub content: Vec<u8>,
    /// Files of weights that the whole run leaves.
    pub weights: BTreeMap<String, Tensors>,
    /// Tensors of every checkpoint of the whole run.
    pub checkpoints: BTreeMap<u64, Tensors>,
    pub log: Log,
    /// Whether the program finds checkpoints by itself.
    pub auto: bool,
    /// How long the whole run takes.
    pub time: Duration,
}

/// Steps of a run.
const STEPS: u64 = 60;

impl Lab {
    /// Every lab: a convolutional network whose checkpoints are large beside its steps, and a small
    /// network with everything that a checkpoint keeps: loss scale, average, sums of two batches.
    pub fn all(root: &Path, binary: &Path, at: &Path) -> Vec<Lab> {
        let digits = root.join("examples/digits");
        let copy = |folder: &Path, name: &str| {
            fs::copy(digits.join(name), folder.join(name)).expect("the example is complete");
        };
        let first = at.join("digits");
        fs::create_dir_all(&first).expect("a folder");
        copy(&first, "model.onnx");
        copy(&first, "digits.safetensors");
        let recipe =
            fs::read_to_string(digits.join("recipe.toml")).expect("the example is complete");
        let recipe = replaced(&recipe, "epochs = 12", &format!("steps = {STEPS}\ncheckpoint = 2"));
        fs::write(first.join("recipe.toml"), recipe).expect("written");
        let second = at.join("small");
        fs::create_dir_all(&second).expect("a folder");
        fs::write(second.join("model.pir"), small::MODEL).expect("written");
        fs::write(second.join("data.csv"), small::table(400)).expect("written");
        let train = format!(
            "[precision]\npolicy = \"f16\"\n[train]\nsteps = {STEPS}\ncheckpoint = 1\nclip_norm = 1.0\n\
             ema = 0.9\naccumulate = 2"
        );
        let recipe = replaced(small::RECIPE, "[train]\nsteps = 4", &train);
        fs::write(second.join("recipe.toml"), recipe).expect("written");
        vec![
            Lab::new("digits", binary, first, "digits.safetensors"),
            Lab::new("small", binary, second, "data.csv"),
        ]
    }

    /// Runs the recipe to its end, keeping every checkpoint.
    fn new(name: &'static str, binary: &Path, folder: PathBuf, data: &str) -> Lab {
        let data = folder.join(data);
        let mut lab = Lab {
            name,
            binary: binary.to_path_buf(),
            content: fs::read(&data).expect("just written"),
            folder,
            data,
            weights: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            log: Log::default(),
            auto: {
                let help =
                    Command::new(binary).args(["train", "--help"]).output().expect("it runs");
                String::from_utf8_lossy(&help.stdout).contains("FILE|auto")
            },
            time: Duration::ZERO,
        };
        let text = fs::read_to_string(lab.folder.join("recipe.toml")).expect("just written");
        fs::write(
            lab.folder.join("all.toml"),
            if lab.auto {
                replaced(&text, "checkpoint = ", "keep = 1000000\ncheckpoint = ")
            } else {
                text
            },
        )
        .expect("written");
        let out = lab.folder.join("whole");
        fs::create_dir_all(&out).expect("a folder");
        let begin = Instant::now();
        let status = lab
            .command("all.toml", &out, false)
            .stdout(Stdio::null())
            .status()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        assert!(status.success(), "{name}: the uninterrupted run failed");
        lab.time = begin.elapsed();
        for (path, step) in files(&out) {
            let tensors = read_tensors(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            match step {
                Some(step) => drop(lab.checkpoints.insert(step, tensors)),
                None => drop(lab.weights.insert(file_name(&path), tensors)),
            }
        }
        lab.log = read_log(&out.join("log.jsonl")).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(lab.weights.contains_key("weights.safetensors"), "{name}: no weights");
        assert!(lab.checkpoints.len() as u64 >= STEPS / 2, "{name}: few checkpoints");
        assert_eq!(lab.log.len() as u64, STEPS, "{name}: the log");
        lab
    }

    /// A training run into `out`.
    pub fn command(&self, recipe: &str, out: &Path, resume: bool) -> Command {
        let mut c = Command::new(&self.binary);
        c.arg("train").arg(recipe).arg("--out").arg(out).arg("--log").arg(out.join("log.jsonl"));
        // Two threads: what is computed does not depend on their number, what happens between them may.
        c.args(["--threads", "2"]).current_dir(&self.folder).stdin(Stdio::null());
        if resume && self.auto {
            c.args(["--resume", "auto"]);
        } else if resume {
            let newest =
                files(out).into_iter().filter_map(|(path, step)| Some((step?, path))).max();
            if let Some((_, path)) = newest {
                c.arg("--resume").arg(path);
            }
        }
        c
    }

    /// Puts the data back as it was.
    pub fn restore(&self) {
        if fs::read(&self.data).ok().as_deref() != Some(&self.content) {
            fs::write(&self.data, &self.content).expect("written");
        }
    }
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the recipe has no `{from}`");
    text.replacen(from, to, 1)
}

pub fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Files of tensors in a folder, with the step of those that are checkpoints.
pub fn files(out: &Path) -> Vec<(PathBuf, Option<u64>)> {
    let mut found = vec![];
    for entry in fs::read_dir(out).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix(".safetensors") {
            let step = stem.strip_prefix("checkpoint-").map(|n| n.parse().expect("a step"));
            found.push((entry.path(), step));
        }
    }
    found.sort();
    found
}
