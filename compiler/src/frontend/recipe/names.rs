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

    /// Which of the model's parameters `[train] freeze` names. That buffers keep their values needs no
    /// saying, and is no error.
    ///
    /// # Errors
    /// `P0111` for a glob that matches no parameter and no buffer.
    pub fn frozen(&self, params: &[String], buffers: &[String]) -> Result<Vec<String>> {
        let mut errors = vec![];
        let mut frozen = vec![false; params.len()];
        for (k, glob) in self.train.freeze.iter().enumerate() {
            // Reading the recipe has tried the glob; another caller's is an error all the same.
            let matcher = Glob::new(glob).map(|g| g.compile_matcher());
            let mut any = buffers.iter().any(|b| matcher.as_ref().is_ok_and(|m| m.is_match(b)));
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

    /// Globs over names of which the recipe says whether they are trained.
    pub fn settled(&self) -> Vec<String> {
        self.train.freeze.iter().chain(self.train.freeze_rows.keys()).cloned().collect()
    }

    /// The rows that `[train] freeze_rows` names, counted from the first and in order, of parameters
    /// with these extents.
    ///
    /// # Errors
    /// `P0112` for a name that is no parameter that is trained, `P0113` for a row that it has not.
    pub fn frozen_rows(
        &self,
        params: &[(String, Vec<usize>)],
        frozen: &[String],
    ) -> Result<Vec<(String, Vec<usize>)>> {
        let mut errors = vec![];
        let mut out = vec![];
        let trained = || params.iter().filter(|(p, _)| !frozen.contains(p));
        for (name, rows) in &self.train.freeze_rows {
            let place = |label: &str| self.place(&[&format!("train.freeze_rows.{name}")], label);
            let Some((_, shape)) = trained().find(|(p, _)| p == name) else {
                let known: Vec<&str> = trained().map(|(p, _)| p.as_str()).collect();
                let (message, label, help) = match frozen.contains(name) {
                    true => (
                        format!("all of `{name}` is frozen by `freeze`"),
                        "frozen already",
                        "remove it here, or from `freeze`".to_string(),
                    ),
                    false => (
                        format!("no parameter `{name}` is trained"),
                        "not in the model",
                        suggestion("parameters", name, &known),
                    ),
                };
                errors.push(Diagnostic::error("P0112", message).at(place(label)).help(help));
                continue;
            };
            let Some(&count) = shape.first() else {
                let message = format!("`{name}` is one number and has no rows");
                errors.push(
                    Diagnostic::error("P0113", message)
                        .at(place("no rows"))
                        .help("`freeze = [\"…\"]` keeps all of a parameter"),
                );
                continue;
            };
            let mut found = std::collections::BTreeSet::new();
            for &row in rows {
                let from_start = if row < 0 { row.saturating_add(count as i64) } else { row };
                match usize::try_from(from_start).ok().filter(|r| *r < count) {
                    Some(r) => {
                        found.insert(r);
                    }
                    None => errors.push(
                        Diagnostic::error("P0113", format!("`{name}` has no row {row}"))
                            .at(place("no such row"))
                            .help(format!(
                                "its rows are 0 to {}, or -1 to -{count} from the end",
                                count.saturating_sub(1)
                            )),
                    ),
                }
            }
            if !found.is_empty() {
                out.push((name.clone(), found.into_iter().collect()));
            }
        }
        if errors.is_empty() { Ok(out) } else { Err(Diagnostics(errors)) }
    }
}
