//! What measured ranges say about a graph: which of its values f16 does not hold, and at which
//! scale the loss should begin.
//!
//! Ranges are measured on the model as it was differentiated, without a loss scale. A value of the
//! rewritten graph is known by the value that it equals there, or that it is the loss scale times.

use super::legal::{self, Legal, Why};
use super::{PrecisionOptions, storages, uniform_operands};
use crate::diagnostic::Result;
use crate::ir::{Graph, ValueId};
use precast_plan::{DType, Ranges, Target};

/// The measured value that a value of a rewritten graph equals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub name: String,
    /// Whether it is the loss scale times that value.
    pub scaled: bool,
}

/// The first loss scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FirstScale {
    /// As the person says, or as the default is where no ranges are known.
    Given(f64),
    /// As the ranges allow, within these bounds.
    Free { default: f64, min: f64, max: f64 },
}

/// A format holds a tensor where its largest number is at least this many times the largest
/// magnitude measured: what comes after the measurement may be larger.
pub const HEADROOM: f64 = 2.0;

/// The largest loss scale that ranges lead to. It lifts what is smaller than 2^-38 into f16's normal
/// numbers; the scale may grow beyond it.
pub const LARGEST_SCALE: f64 = 16_777_216.0;

/// Legality, and what the ranges added to it.
pub struct Ranged {
    pub legal: Legal,
    /// The first loss scale, where the ranges chose it.
    pub scale: Option<f64>,
    /// A clause on both for the summary; empty without ranges.
    pub note: String,
}

/// [`legal::legality`] with the ranges of `o`, where there are any and the format's range is
/// narrower than f32's.
///
/// # Errors
/// P0501, see [`legal::legality`].
pub fn legality(
    g: &Graph,
    origins: &[Option<Origin>],
    half: DType,
    o: &PrecisionOptions,
    target: &Target,
) -> Result<Ranged> {
    let Some(ranges) = o.ranges.as_deref().filter(|_| half == DType::F16) else {
        let legal = legal::legality(g, half, o, target)?;
        return Ok(Ranged { legal, scale: None, note: String::new() });
    };
    // Pins are judged once, with everything known.
    let unpinned = PrecisionOptions { pins: vec![], ..o.clone() };
    let free = legal::legality(g, half, &unpinned, target)?;
    let narrow = narrow(g, &free);
    let measured = Measured::new(g, origins, ranges);
    let found = measured.first_scale(&narrow, o.first_scale);
    let (FirstScale::Given(other) | FirstScale::Free { default: other, .. }) = o.first_scale;
    let scale = found.as_ref().map_or(other, |f| f.0);
    let limits = measured.limits(half, scale);
    let stay = limits.iter().zip(&narrow).filter(|(why, narrow)| why.is_some() && **narrow).count();
    let legal = legal::legality_within(g, half, o, target, &limits)?;
    let mut note = String::new();
    if let Some((scale, name)) = &found {
        note += &format!("; by the ranges the loss scale begins at {scale}, for `{name}`");
    }
    if stay > 0 {
        let tensors = if stay == 1 { "tensor stays" } else { "tensors stay" };
        note += &format!("; by the ranges {stay} {tensors} f32");
    }
    Ok(Ranged { legal, scale: found.map(|f| f.0), note })
}

/// By storage: whether it, or a copy of it that a product reads, may be in the 16-bit format.
fn narrow(g: &Graph, legal: &Legal) -> Vec<bool> {
    let storage = storages(g);
    let mut out: Vec<bool> = legal.store.iter().map(Option::is_none).collect();
    for (_, n) in g.nodes().filter(|(id, _)| legal.product[id.0 as usize].is_none()) {
        for &i in uniform_operands(&n.op, n.inputs.len()) {
            out[storage[n.inputs[i].0 as usize].0 as usize] = true;
        }
    }
    out.iter_mut().zip(&legal.copy).for_each(|(narrow, why)| *narrow &= why.is_none());
    out
}

/// By storage: the largest magnitude measured of it, whose it is, and whether the loss scale
/// multiplies it.
struct Measured<'r>(Vec<Option<(f64, &'r str, bool)>>);

impl<'r> Measured<'r> {
    fn new(g: &Graph, origins: &[Option<Origin>], ranges: &'r Ranges) -> Measured<'r> {
        let by_name: std::collections::BTreeMap<&str, (f64, &'r str)> =
            ranges.tensors.iter().map(|t| (t.name.as_str(), (t.max, t.name.as_str()))).collect();
        let mut out: Vec<Option<(f64, &str, bool)>> = vec![None; g.value_count()];
        for (v, root) in storages(g).into_iter().enumerate() {
            let Some(origin) = origins.get(v).and_then(Option::as_ref) else { continue };
            let Some(&(max, name)) = by_name.get(origin.name.as_str()) else { continue };
            // A view shows some of its storage's elements, so the largest of all counts.
            let at = &mut out[root.0 as usize];
            if at.is_none_or(|(other, _, _)| max > other) {
                *at = Some((max, name, origin.scaled));
            }
        }
        Measured(out)
    }

    /// The largest power of two under which no cotangent that may be f16 overflows, and the
    /// cotangent that limits it. One that overflows even unscaled limits nothing: it stays f32.
    fn first_scale(&self, narrow: &[bool], first: FirstScale) -> Option<(f64, &'r str)> {
        let FirstScale::Free { min, max, .. } = first else { return None };
        let most = DType::F16.facts().max / HEADROOM;
        let largest = self
            .0
            .iter()
            .zip(narrow)
            .filter(|(_, narrow)| **narrow)
            .filter_map(|(m, _)| m.filter(|m| m.2 && m.0 > 0.0 && m.0 <= most))
            .max_by(|a, b| a.0.total_cmp(&b.0))?;
        let scale = (most / largest.0).log2().floor().exp2().min(LARGEST_SCALE);
        Some((scale.clamp(min, max), largest.1))
    }

    /// By storage: why `half` does not hold it.
    fn limits(&self, half: DType, scale: f64) -> Vec<Option<Why>> {
        let most = half.facts().max;
        let judge = |&(max, name, scaled): &(f64, &str, bool)| -> Option<Why> {
            let reached = if scaled { max * scale } else { max };
            if reached * HEADROOM <= most {
                return None;
            }
            let under = match scaled {
                true => format!(", {reached:.2e} under the loss scale {scale}"),
                false => String::new(),
            };
            Some(
                format!(
                    "`{name}` reached {max:.2e} in the ranges{under}; {half} holds {most}, of which \
                     half is kept free"
                )
                .into(),
            )
        };
        self.0.iter().map(|m| m.as_ref().and_then(judge)).collect()
    }
}

/// Sets the first value of the loss scale.
pub fn begin_at(g: &mut Graph, loss_scale: &str, scale: f64) {
    if let Some(var) = g.vars.get_mut(loss_scale) {
        var.init = crate::ir::VarInit::Value(scale);
    }
}

/// Values that ranges are measured of, by name: see [`Graph::value_name`].
pub fn names(g: &Graph) -> impl Iterator<Item = (ValueId, String)> + '_ {
    (0..g.value_count() as u32).map(ValueId).map(|v| (v, g.value_name(v)))
}
