//! Numbers that a file may have lost, said once for all nodes of a kind.

use super::import::{Importer, Val};
use super::proto::NodeProto;
use crate::diagnostic::Diagnostic;
use crate::frontend::weights::shown;
use std::collections::BTreeMap;

/// A kind of loss, and the nodes that have it.
pub(super) type Lost = BTreeMap<&'static str, Vec<String>>;

struct Kind {
    code: &'static str,
    what: &'static str,
    help: &'static str,
}

/// `F.cosine_similarity` of the TorchScript exporter, or a formula of somebody's own.
pub(super) const SIMILARITY: &str = "P0235";
/// A complement of the error function.
pub(super) const COMPLEMENT: &str = "P0236";

const KINDS: [Kind; 2] = [
    Kind {
        code: SIMILARITY,
        what: "read as `F.cosine_similarity`, which holds each vector's norm above eps; the exporter writes a \
               formula that holds the norms' product above it, as a module may have itself",
        help: "nothing is lost where the module calls `F.cosine_similarity` or no norm is near eps; \
               a formula of the module's own is kept by torch.onnx.export(dynamo=True), and by \
               `clamp(min=eps)` in place of `torch.max`. See docs/EXPORTING.md",
    },
    Kind {
        code: COMPLEMENT,
        what: "1 − erf(x) has no digits left where x is above 4: `torch.erfc` is exported so",
        help: "nothing that matters is lost where x stays below 2; elsewhere write a form that keeps its digits, \
               such as `exp(-x * x)` times a polynomial. See docs/EXPORTING.md",
    },
];

impl Importer<'_> {
    /// Notes the node that is converted.
    pub(super) fn note_lost(&mut self, code: &'static str) {
        let name = self.base.clone();
        let names = self.lost.entry(code).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }

    /// Notes `1 − Erf(x)`.
    pub(super) fn note_complement(&mut self, node: &NodeProto) {
        let is = |n: &NodeProto, op: &str| n.op_type.as_deref() == Some(op);
        let [one, erf] = &node.input[..] else { return };
        if !is(node, "Sub")
            || !self.src.every_node().any(|n| is(n, "Erf") && n.output.contains(erf))
        {
            return;
        }
        if let Some(Val::Const(one)) = self.values.get(one)
            && one.splat() == Some(1.0)
        {
            self.note_lost(COMPLEMENT);
        }
    }

    pub(super) fn warn_about_losses_of_numbers(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        for kind in &KINDS {
            let Some(names) = lost.get(kind.code) else { continue };
            let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
            let at = self.src.graph.node.iter().position(|n| n.name.as_ref() == names.first());
            let place = match at {
                Some(i) => self.src.node_place(i),
                None => crate::Place::File { path: self.src.path.clone() },
            };
            let message = format!("{}: {}", shown(&quoted), kind.what);
            self.warnings.push(Diagnostic::warning(kind.code, message).at(place).help(kind.help));
        }
    }
}
