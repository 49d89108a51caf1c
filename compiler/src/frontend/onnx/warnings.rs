//! What is said once the whole model has been read.

use super::import::Importer;
use super::params::{Doubt, Role};
use super::stops::Globs;
use crate::diagnostic::Diagnostic;
use crate::frontend::weights::shown;
use crate::ir::{VarInit, VarRole};
use std::collections::BTreeSet;

impl Importer<'_> {
    pub(super) fn warn_about_names(&mut self, params: &[String]) {
        let help = "export with dynamo=False and do_constant_folding=False, or with dynamo=True and \
                    optimize=False; see docs/EXPORTING.md";
        let file = crate::Place::File { path: self.src.path.clone() };
        let lost = |n: &&String| {
            n.starts_with("onnx::")
                || n.strip_prefix("val_").is_some_and(|r| r.bytes().all(|b| b.is_ascii_digit()))
        };
        if let Some(n) = params.iter().find(lost) {
            let count = params.iter().filter(lost).count();
            let message = format!("{count} parameters have lost their names (`{n}`)");
            self.warnings.push(Diagnostic::warning("P0224", message).at(file.clone()).help(help));
        }
        let of = |n: &str| self.roles.get(n);
        if let Some((n, k)) =
            params.iter().find_map(|n| Some((n, of(n).filter(|k| k.foreign > 1)?)))
        {
            let message = format!(
                "`{n}` scales {} normalisations: the exporter merged initializers of equal values, \
                 and they will be trained as one",
                k.foreign
            );
            self.warnings.push(Diagnostic::warning("P0225", message).at(file.clone()).help(help));
        }
        if let Some(n) = self.vars.keys().find(|n| of(n).is_some_and(|k| k.merged)) {
            let message = format!(
                "`{n}` is a parameter and a running statistic of batch normalisation: the exporter \
                 merged initializers of equal values, and it will not be trained"
            );
            self.warnings.push(Diagnostic::warning("P0225", message).at(file.clone()).help(help));
        }
        for n in params {
            let Some(Doubt::Computed(from)) = of(n).and_then(|k| k.doubt.as_ref()) else {
                continue;
            };
            let list: Vec<String> = from.iter().map(|n| format!("`{n}`")).collect();
            let message = format!(
                "`{n}` is what the exporter's optimizer computed from {}, and will be trained in their \
                 place",
                shown(&list)
            );
            let place = self.src.tensor_place(n);
            self.warnings.push(Diagnostic::warning("P0224", message).at(place).help(help));
        }
        let unclear: Vec<&str> = self
            .roles
            .iter()
            .filter(|(n, k)| k.role == Role::Unclear && self.values.contains_key(*n))
            .map(|(n, _)| n.as_str())
            .collect();
        if !unclear.is_empty() {
            let list: Vec<String> = unclear.iter().map(|n| format!("`{n}`")).collect();
            let message = format!(
                "scalars that will not be trained: {}. Their names are not those of a module; the \
                 exporter may have computed them",
                shown(&list)
            );
            self.warnings.push(Diagnostic::warning("P0226", message).at(file).help(
                "where one comes from a parameter, export with optimize=False; if it is one, say so in \
                 the recipe: [train] parameters = [\"name\"]. See docs/EXPORTING.md",
            ));
        }
    }

    /// Guesses at what is a parameter and what a buffer.
    pub(super) fn warn_about_roles(&mut self) {
        if !self.opts.training {
            return;
        }
        let file = crate::Place::File { path: self.src.path.clone() };
        let settled = Globs::new(&self.opts.settled);
        let with = |doubt: &Doubt| -> Vec<&str> {
            let of = |n: &str| self.roles.get(n).and_then(|k| k.doubt.as_ref());
            let names = self.graph.vars.keys().map(String::as_str);
            names.filter(|n| of(n) == Some(doubt) && !settled.matches(n)).collect()
        };
        let quoted = |names: &[&str]| {
            shown(&names.iter().map(|n| format!("`{n}`")).collect::<Vec<String>>())
        };
        let keys = |names: &[&str]| {
            shown(&names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<String>>())
        };
        let mut found = vec![];
        for (doubt, why) in [
            (Doubt::Name, "their names are those of buffers"),
            (Doubt::Sinusoids, "they are sinusoids"),
        ] {
            let names = with(&doubt);
            if !names.is_empty() {
                let message = format!("not trained, since {why}: {}", quoted(&names));
                found.push(Diagnostic::warning("P0229", message).at(file.clone()).help(format!(
                    "where one is a parameter, say so in the recipe: [train] parameters = [{}]",
                    keys(&names)
                )));
            }
        }
        let names = with(&Doubt::Trained);
        if !names.is_empty() {
            let message =
                format!("trained, though their names may be those of buffers: {}", quoted(&names));
            found.push(Diagnostic::warning("P0230", message).at(file).help(format!(
                "where one is a buffer, keep its value: [train] freeze = [{0}]; where all are \
                 parameters, [train] parameters = [{0}] ends this warning",
                keys(&names)
            )));
        }
        self.warnings.extend(found);
    }

    pub(super) fn warn_about_weights(&mut self) {
        let Some(file) = &self.weights else { return };
        let (mut matched, mut drawn, mut own) = (BTreeSet::new(), vec![], vec![]);
        for (name, var) in self.graph.vars.iter().filter(|(_, v)| v.role != VarRole::Machine) {
            if matches!(var.init, VarInit::Weights(_)) {
                matched.insert(name.as_str());
            } else if self.drawn.contains(name) {
                drawn.push(name.as_str());
            } else {
                own.push(name.as_str());
            }
        }
        let warning = file.partial(&matched, &drawn, &own);
        self.warnings.extend(warning);
    }
}
