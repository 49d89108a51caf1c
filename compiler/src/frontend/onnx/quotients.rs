//! Quotients that are rounded. The TorchScript exporter writes `a // b`, which rounds down, as it writes
//! `torch.div(a, b, rounding_mode="trunc")` and `(a / b).long()`, which round toward zero.

use super::import::{Importer, Res, Val};
use super::origin;
use super::proto::{NodeProto, elem};
use super::tensor::{Data, Tensor};
use crate::diagnostic::Diagnostic;
use crate::frontend::weights::shown;
use precast_plan::Kind;

fn is(node: &NodeProto, op: &str) -> bool {
    node.op_type.as_deref() == Some(op)
}

fn casts_to(node: &NodeProto, code: i32) -> bool {
    let to = node.attribute.iter().find(|a| a.name.as_deref() == Some("to"));
    is(node, "Cast") && to.is_some_and(|a| a.i == Some(i64::from(code)))
}

/// Whether some numbers are negative, and some positive.
fn signs(t: &Tensor) -> (bool, bool) {
    let x = t.to_reals();
    (x.iter().any(|x| *x < 0.0), x.iter().any(|x| *x > 0.0))
}

impl Importer<'_> {
    /// Notes a quotient that the file does not say how the module rounds it, where that matters.
    pub(super) fn note_quotient(&mut self, node: &NodeProto) -> Res<()> {
        let scripted = self.src.producer.starts_with("pytorch") && !origin::is_program(self.src);
        if !is(node, "Div") || !scripted || node.input.len() != 2 {
            return Ok(());
        }
        let readers = |y: &str| {
            let all = self.src.every_node().filter(|n| n.input.iter().any(|x| x == y));
            all.collect::<Vec<_>>()
        };
        let first = readers(&node.output[0]);
        let (a, b) = (self.operand(&node.input[0])?, self.operand(&node.input[1])?);
        let integers = self.kind(&a)? == Kind::Int;
        let rounded = match integers {
            // `torch.div(a, b, rounding_mode="floor")` has a correction behind it.
            true => first.iter().all(|n| is(n, "Cast")),
            false => first.iter().all(|n| {
                let y = n.output.first();
                casts_to(n, elem::INT64)
                    && y.is_some_and(|y| readers(y).iter().all(|n| casts_to(n, elem::FLOAT)))
            }),
        };
        if first.is_empty() || !rounded || !self.may_be_below(&a, &b)? {
            return Ok(());
        }
        let name = self.base.clone();
        if !self.quotients.contains(&name) {
            self.quotients.push(name);
        }
        Ok(())
    }

    /// Whether a quotient that is not whole can be negative.
    fn may_be_below(&self, a: &Val, b: &Val) -> Res<bool> {
        if let (Val::Const(a), Val::Const(b)) = (a, b) {
            if let (Data::Int(x), Data::Int(y)) = (&a.data, &b.data)
                && let ([x], [y]) = (&x[..], &y[..])
            {
                return Ok(*y != 0 && x.wrapping_rem(*y) != 0 && (*x < 0) != (*y < 0));
            }
            let (a, b) = (signs(a), signs(b));
            return Ok(a.0 && b.1 || a.1 && b.0);
        }
        let positive = |v: &Val| match v {
            Val::Const(t) => !signs(t).0,
            Val::Node(v) => self.graph.ty(*v).kind() == Kind::Int && self.never_negative(*v),
            Val::Seq(_) => false,
        };
        Ok(!(positive(a) && positive(b)))
    }

    /// P0234.
    pub(super) fn warn_about_quotients(&mut self) {
        let names = std::mem::take(&mut self.quotients);
        let Some(first) = names.first() else { return };
        let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
        let message = format!(
            "quotients that are rounded toward zero: {}. The exporter writes `a // b`, which rounds \
             down, in the same way",
            shown(&quoted)
        );
        let at = self.src.graph.node.iter().position(|n| n.name.as_ref() == Some(first));
        let place = match at {
            Some(i) => self.src.node_place(i),
            None => crate::Place::File { path: self.src.path.clone() },
        };
        self.warnings.push(Diagnostic::warning("P0234", message).at(place).help(
            "where one is `a // b` of numbers that can be negative, write `torch.div(a, b, \
             rounding_mode=\"floor\")` and export again; of others nothing is lost. See docs/EXPORTING.md",
        ));
    }
}
