//! Names in a recipe that the model must have.

use super::Recipe;
use crate::diagnostic::{Diagnostic, Diagnostics, Result, suggestion};
use crate::frontend::onnx::ModelInfo;
use globset::Glob;

impl Recipe {
    /// Checks that the model has the dimensions and inputs that `[data]` names.
    ///
    /// # Errors
    /// `P0109` for each that it has not.
    pub fn check_names(&self, info: &ModelInfo) -> Result<()> {
        let inputs: Vec<&str> = info.inputs.iter().map(|i| i.name.as_str()).collect();
        self.check_against(&inputs, &info.dim_names())
    }

    /// As [`Recipe::check_names`], against names.
    ///
    /// # Errors
    /// `P0109`, as above.
    pub fn check_against(&self, inputs: &[&str], dims: &[&str]) -> Result<()> {
        let mut errors = vec![];
        let mut unknown = |what: &str, list: &str, key: String, name: &str, known: &[&str]| {
            errors.push(
                Diagnostic::error("P0109", format!("the model has no {what} `{name}`"))
                    .at(self.place(&[&key], "not in the model"))
                    .help(suggestion(list, name, known)),
            );
        };
        for name in self.data.dims.keys().filter(|d| !dims.contains(&d.as_str())) {
            let key = format!("data.dims.{name}");
            unknown("dynamic dimension", "dynamic dimensions", key, name, dims);
        }
        for name in self.data.inputs.keys().filter(|i| !inputs.contains(&i.as_str())) {
            unknown("input", "inputs", format!("data.inputs.{name}"), name, inputs);
        }
        if errors.is_empty() { Ok(()) } else { Err(Diagnostics(errors)) }
    }

    /// Which of the model's parameters `[train] freeze` names.
    ///
    /// # Errors
    /// `P0111` for a glob that matches none.
    pub fn frozen(&self, params: &[String]) -> Result<Vec<String>> {
        let mut errors = vec![];
        let mut frozen = vec![false; params.len()];
        for (k, glob) in self.train.freeze.iter().enumerate() {
            // Reading the recipe has tried the glob; another caller's is an error all the same.
            let matcher = Glob::new(glob).map(|g| g.compile_matcher());
            let mut any = false;
            for (p, hit) in params.iter().zip(&mut frozen) {
                if matcher.as_ref().is_ok_and(|m| m.is_match(p)) {
                    (*hit, any) = (true, true);
                }
            }
            if !any {
                let known: Vec<&str> = params.iter().map(String::as_str).collect();
                errors.push(
                    Diagnostic::error("P0111", format!("`{glob}` matches no parameter"))
                        .at(self.place(&[&format!("train.freeze.{k}")], "matches nothing"))
                        .help(suggestion("parameters", glob, &known)),
                );
            }
        }
        if !errors.is_empty() {
            return Err(Diagnostics(errors));
        }
        Ok(params.iter().zip(frozen).filter(|(_, f)| *f).map(|(p, _)| p.clone()).collect())
    }
}
