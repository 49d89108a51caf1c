//! A folder with a small model, its data and a recipe.

use super::small::{MODEL, RECIPE, table};
use super::{code, command, stderr, stdout};
use std::path::PathBuf;
use std::process::Output;
use tempfile::TempDir;

pub struct Lab {
    pub dir: TempDir,
}

impl Lab {
    /// Model, data and recipe.
    pub fn new() -> Lab {
        Lab::with("", "")
    }

    /// The recipe with `old` replaced.
    pub fn with(old: &str, new: &str) -> Lab {
        let lab = Lab { dir: tempfile::tempdir().expect("a temporary folder") };
        lab.write("model.pir", MODEL);
        lab.write("data.csv", &table(24));
        lab.recipe(old, new);
        lab
    }

    /// Writes the recipe with `old` replaced.
    pub fn recipe(&self, old: &str, new: &str) {
        assert!(RECIPE.contains(old), "{old}");
        self.write("recipe.toml", &RECIPE.replacen(old, new, 1));
    }

    /// A model file of the fixtures, with the data it needs, under the names of the files here.
    pub fn fixture(name: &str) -> Lab {
        let lab = Lab { dir: tempfile::tempdir().expect("a temporary folder") };
        let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        for file in ["model.onnx", "weights.safetensors", "batch.safetensors"] {
            std::fs::copy(from.join(file), lab.path(file)).expect("the fixture is complete");
        }
        lab.write(
            "recipe.toml",
            r#"model = "model.onnx"
[data]
format = "safetensors"
file = "batch.safetensors"
inputs = { x = "in.x" }
targets = { targets = "tgt.targets" }
[loss]
kind = "cross_entropy"
[optimizer]
kind = "sgd"
lr = 0.1
[train]
steps = 2
"#,
        );
        lab
    }

    /// The folder's path, as messages show it.
    pub fn dir(&self) -> String {
        format!("{}/", self.dir.path().display())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).expect("UTF-8")
    }

    /// The command, in this folder.
    pub fn run(&self, args: &[&str]) -> Output {
        command(args).current_dir(self.dir.path()).output().expect("the binary runs")
    }

    /// Standard output of a command that succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let o = self.run(args);
        assert_eq!(code(&o), 0, "{args:?}: {}", stderr(&o));
        stdout(&o)
    }

    /// Standard error of a command that fails with exit code 1; its first error code.
    pub fn fails(&self, args: &[&str]) -> (String, String) {
        let o = self.run(args);
        assert_eq!(code(&o), 1, "{args:?}: {}{}", stdout(&o), stderr(&o));
        let text = stderr(&o);
        let at = text.find("error[").unwrap_or_else(|| panic!("no code in {text}"));
        (text[at + 6..at + 11].to_string(), text)
    }

    /// Standard error of a command that succeeds: its warnings.
    pub fn warnings(&self, args: &[&str]) -> String {
        let o = self.run(args);
        assert_eq!(code(&o), 0, "{args:?}: {}", stderr(&o));
        stderr(&o)
    }
}
