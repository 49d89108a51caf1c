//! Who made the first value that is not finite.

use crate::session::Seen;
use precast_plan::{DType, Side, Watch};
use serde::Serialize;

/// The first value of a step that is not finite, and what it was computed from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blame {
    /// Name of the operation, and its mnemonic; of a tensor that the step was given, its name and
    /// `input` or `var`.
    pub op: String,
    pub kind: String,
    pub tensor: String,
    pub side: Side,
    /// The format it is stored in; f32 where it stays in registers.
    pub format: DType,
    /// Of the first element that is not finite, in row-major order; `shape` is the tensor's.
    pub index: Vec<u64>,
    pub shape: Vec<u64>,
    /// `inf`, `-inf` or `NaN`: JSON has no such numbers.
    pub value: String,
    /// How many of the tensor's elements are not finite.
    pub elements: u64,
    /// Which of the step's batches, from 0.
    pub micro: u32,
    /// What the operation read.
    pub operands: Vec<Operand>,
}

/// A tensor that the blamed operation read, whose elements are all finite, unless it is a mask.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operand {
    pub tensor: String,
    /// Largest magnitude of its finite elements.
    pub max: f32,
}

impl Blame {
    /// `fc1[3, 0] = inf` and the like, in one sentence.
    pub fn sentence(&self) -> String {
        let index: Vec<String> = self.index.iter().map(u64::to_string).collect();
        let element = match index.is_empty() {
            true => self.tensor.clone(),
            false => format!("{}[{}]", self.tensor, index.join(", ")),
        };
        let what = match self.side {
            Side::Input | Side::State => format!("the step was given {element} = {}", self.value),
            side => format!(
                "{element} = {}, the first value that is not finite, in the {} pass: a result of {} \
                 `{}` in {}",
                self.value,
                if side == Side::Forward { "forward" } else { "backward" },
                self.kind,
                self.op,
                self.format
            ),
        };
        let reads: Vec<String> =
            self.operands.iter().map(|o| format!("{} (at most {:.3e})", o.tensor, o.max)).collect();
        match reads.is_empty() {
            true => what,
            false => format!("{what}, of {}", reads.join(", ")),
        }
    }
}

/// What one watch held in one micro batch.
#[derive(Clone, Copy, Debug)]
struct Look {
    max: f32,
    /// Index and bits of the first element that is not finite.
    first: Option<(usize, f32)>,
    bad: u64,
    nan: bool,
}

/// Looks for the first value that is not finite, in the order of the graph: forward before
/// backward, operands before results.
#[derive(Debug)]
pub struct Finder<'w> {
    watches: &'w [Watch],
    looks: Vec<Option<Look>>,
    micro: u32,
    found: Option<Blame>,
}

impl<'w> Finder<'w> {
    pub fn new(watches: &'w [Watch]) -> Finder<'w> {
        Finder { watches, looks: vec![None; watches.len()], micro: 0, found: None }
    }

    /// Takes in a value; those of one micro batch before those of the next.
    pub fn see(&mut self, seen: Seen) {
        if seen.micro != self.micro {
            self.settle();
            self.micro = seen.micro;
        }
        let mut look = Look { max: 0.0, first: None, bad: 0, nan: false };
        for (i, &x) in seen.values.iter().enumerate() {
            if x.is_finite() {
                look.max = look.max.max(x.abs());
            } else {
                look.bad += 1;
                look.nan |= x.is_nan();
                look.first.get_or_insert((i, x));
            }
        }
        self.looks[seen.watch] = Some(look);
    }

    /// The culprit, or `None` where every value is finite.
    pub fn finish(mut self) -> Option<Blame> {
        self.settle();
        self.found
    }

    /// Judges the micro batch that was seen.
    fn settle(&mut self) {
        let looks = std::mem::replace(&mut self.looks, vec![None; self.watches.len()]);
        if self.found.is_some() {
            return;
        }
        // Infinities of a mask are meant, and so are those that follow from adding it.
        let mut meant = vec![false; self.watches.len()];
        for (i, (watch, look)) in self.watches.iter().zip(&looks).enumerate() {
            let Some(Look { first: Some((at, x)), nan, bad, .. }) = *look else { continue };
            let masked =
                watch.infinite_literal || watch.operands.iter().any(|&o| meant[o as usize]);
            if masked && !nan {
                meant[i] = true;
                continue;
            }
            let operands = watch.operands.iter().filter_map(|&o| {
                let tensor = self.watches[o as usize].name.clone();
                Some(Operand { tensor, max: looks[o as usize]?.max })
            });
            self.found = Some(Blame {
                op: watch.op.clone(),
                kind: watch.kind.clone(),
                tensor: watch.name.clone(),
                side: watch.side,
                format: watch.stored.unwrap_or(DType::F32),
                index: unravel(at as u64, &watch.shape),
                shape: watch.shape.clone(),
                value: if x.is_nan() { "NaN".into() } else { format!("{x}") },
                elements: bad,
                micro: self.micro,
                operands: operands.collect(),
            });
            return;
        }
    }
}

/// The index of element `at` of a row-major tensor.
fn unravel(mut at: u64, shape: &[u64]) -> Vec<u64> {
    let mut index = vec![0; shape.len()];
    for (i, &n) in index.iter_mut().zip(shape).rev() {
        *i = at % n.max(1);
        at /= n.max(1);
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use precast_plan::Access;

    fn watch(name: &str, side: Side, operands: &[u32]) -> Watch {
        Watch {
            name: name.into(),
            op: name.into(),
            kind: "binary".into(),
            side,
            stored: Some(DType::F16),
            shape: vec![2, 2],
            access: Access { tensor: 0, offset: 0, strides: vec![2, 1] },
            after: Some(0),
            operands: operands.to_vec(),
            infinite_literal: false,
        }
    }

    const INF: f32 = f32::INFINITY;

    fn blame(watches: &[Watch], values: &[[f32; 4]]) -> Option<Blame> {
        let mut finder = Finder::new(watches);
        // The order of execution need not be that of the graph.
        for (watch, values) in values.iter().enumerate().rev() {
            finder.see(Seen { micro: 0, watch, values });
        }
        finder.finish()
    }

    #[test]
    fn the_first_of_the_graph_is_blamed_whatever_ran_first() {
        let watches = [
            watch("a", Side::Forward, &[]),
            watch("b", Side::Forward, &[0]),
            watch("b.grad", Side::Cotangent, &[1]),
        ];
        let b = blame(&watches, &[[1.0, -3.0, 0.0, 2.0], [0.0, 1.0, -INF, INF], [INF; 4]]).unwrap();
        assert_eq!((b.op.as_str(), &b.index[..], b.value.as_str()), ("b", &[1, 0][..], "-inf"));
        assert_eq!((b.elements, b.micro, b.side), (2, 0, Side::Forward));
        assert_eq!(b.operands, [Operand { tensor: "a".into(), max: 3.0 }]);
        assert_eq!(blame(&watches, &[[1.0; 4]; 3]), None);
        let b = blame(&watches, &[[1.0; 4], [1.0; 4], [0.0, f32::NAN, 0.0, 0.0]]).unwrap();
        assert_eq!((b.op.as_str(), b.side, b.value.as_str()), ("b.grad", Side::Cotangent, "NaN"));
    }

    #[test]
    fn infinities_of_a_mask_are_meant() {
        let mut masked = watch("masked", Side::Forward, &[0]);
        masked.infinite_literal = true;
        let watches = [
            watch("scores", Side::Forward, &[]),
            masked,
            watch("copy", Side::Forward, &[1]),
            watch("next", Side::Forward, &[0]),
        ];
        let fine = [1.0; 4];
        let hidden = [1.0, -INF, 1.0, 1.0];
        assert_eq!(blame(&watches, &[fine, hidden, hidden, fine]), None);
        let b = blame(&watches, &[fine, hidden, hidden, [1.0, 1.0, 1.0, INF]]).unwrap();
        assert_eq!((b.op.as_str(), &b.index[..]), ("next", &[1, 1][..]));
        // NaN is nobody's mask.
        let b = blame(&watches, &[fine, hidden, [1.0, f32::NAN, 1.0, 1.0], fine]).unwrap();
        assert_eq!(b.op, "copy");
    }

    #[test]
    fn the_first_micro_batch_at_fault_is_named() {
        let watches = [watch("a", Side::Forward, &[])];
        let mut finder = Finder::new(&watches);
        for (micro, x) in [(0, 1.0), (1, INF), (2, f32::NAN)] {
            finder.see(Seen { micro, watch: 0, values: &[x; 4] });
        }
        let b = finder.finish().unwrap();
        assert_eq!((b.micro, b.value.as_str()), (1, "inf"));
    }
}
