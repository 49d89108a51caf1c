//! What is said once the whole model has been read.

use super::import::Importer;
use super::params::Role;
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
        let merged = params.iter().find(|n| self.roles.get(*n).is_some_and(|(_, k)| *k > 1));
        if let Some(n) = merged {
            let message = format!(
                "`{n}` scales {} normalisations: the exporter merged initializers of equal values, \
                 and they will be trained as one",
                self.roles[n].1
            );
            self.warnings.push(Diagnostic::warning("P0225", message).at(file.clone()).help(help));
        }
        let unclear: Vec<&str> = self
            .roles
            .iter()
            .filter(|(n, (role, _))| *role == Role::Unclear && self.values.contains_key(*n))
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
                "where one comes from a parameter, export with optimize=False; if it is one, give it \
                 another name. See docs/EXPORTING.md",
            ));
        }
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
