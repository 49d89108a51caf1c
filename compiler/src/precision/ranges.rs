//! What measured ranges say about a graph: which of its values f16 does not hold, for being too large
//! or too small, and at which scale the loss should begin.
//!
//! Ranges are measured on the model as it was differentiated, without a loss scale. A value of the
//! rewritten graph is known by the value that it equals there, or that it is the loss scale times.

use super::legal::{self, Judged, Legal};
use super::{PrecisionOptions, storages, uniform_operands};
use crate::diagnostic::Result;
use crate::ir::{Graph, ValueId};
use precast_plan::{DType, Range, Ranges, Target};

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
    let judged = measured.judged(half, scale);
    let lost = |j: &Judged| matches!(j, Judged::Lost(_));
    let stay = judged.iter().zip(&narrow).filter(|(j, narrow)| lost(j) && **narrow).count();
    let legal = legal::legality_within(g, half, o, target, &judged)?;
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

/// By storage: what was measured of it and of its views, and whether the loss scale multiplies it.
struct Measured<'r>(Vec<Vec<(&'r Range, bool)>>);

impl<'r> Measured<'r> {
    fn new(g: &Graph, origins: &[Option<Origin>], ranges: &'r Ranges) -> Measured<'r> {
        let by_name: std::collections::BTreeMap<&str, &Range> =
            ranges.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut out: Vec<Vec<(&Range, bool)>> = vec![vec![]; g.value_count()];
        for (v, root) in storages(g).into_iter().enumerate() {
            let Some(origin) = origins.get(v).and_then(Option::as_ref) else { continue };
            let Some(&range) = by_name.get(origin.name.as_str()) else { continue };
            out[root.0 as usize].push((range, origin.scaled));
        }
        Measured(out)
    }

    /// A view shows some of its storage's elements, so the largest of all counts.
    fn largest(of: &[(&'r Range, bool)]) -> Option<(&'r Range, bool)> {
        of.iter().copied().reduce(|a, b| if b.0.max > a.0.max { b } else { a })
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
            .filter_map(|(m, _)| Self::largest(m))
            .filter(|(r, scaled)| *scaled && r.max > 0.0 && r.max <= most)
            .max_by(|a, b| a.0.max.total_cmp(&b.0.max))?
            .0;
        let scale = (most / largest.max).log2().floor().exp2().min(LARGEST_SCALE);
        Some((scale.clamp(min, max), &largest.name))
    }

    /// By storage: whether `half` holds it.
    fn judged(&self, half: DType, scale: f64) -> Vec<Judged> {
        self.0.iter().map(|m| judge(m, half, scale)).collect()
    }
}

/// Whether `half` holds a storage of which this was measured.
fn judge(measured: &[(&Range, bool)], half: DType, scale: f64) -> Judged {
    let Some((range, scaled)) = Measured::largest(measured) else { return Judged::Unknown };
    let facts = half.facts();
    let (name, max) = (&range.name, range.max);
    let by = if scaled { scale } else { 1.0 };
    let reached = max * by;
    let under = match scaled {
        true => format!(", {reached:.2e} under the loss scale {scale}"),
        false => String::new(),
    };
    if reached * HEADROOM > facts.max {
        let why = format!(
            "`{name}` reached {max:.2e} in the ranges{under}; {half} holds {}, of which half is kept \
             free",
            facts.max
        );
        return Judged::Lost(why.into());
    }
    if reached > 0.0 && reached < facts.min_normal {
        let why = format!(
            "`{name}` reached no more than {max:.2e} in the ranges{under}; {half} has {} bits down to \
             {:.1e} only",
            facts.mantissa_bits + 1,
            facts.min_normal
        );
        return Judged::Lost(why.into());
    }
    // Of parts that were measured apart, each would have to vanish.
    let vanish = |(r, scaled): &(&Range, bool)| {
        let scale = if *scaled { scale } else { 1.0 };
        let half_of_least = (facts.min_subnormal / 2.0 / scale).log2().floor() as i32;
        let seen: u64 = r.histogram.counts.iter().sum();
        (r.histogram.below(half_of_least), seen)
    };
    let shares: Vec<(u64, u64)> = measured.iter().map(vanish).collect();
    if shares.iter().all(|(lost, seen)| *seen > 0 && lost * 2 > *seen) {
        let (lost, seen) = shares[0];
        let why = format!(
            "{:.0} % of what is not zero in `{name}` was so small in the ranges{} that {half} rounds \
             it to 0",
            100.0 * lost as f64 / seen as f64,
            if scaled { format!(", under the loss scale {scale} too,") } else { String::new() }
        );
        return Judged::Lost(why.into());
    }
    Judged::Held
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

#[cfg(test)]
mod tests {
    use super::*;
    use precast_plan::{Histogram, Side};

    /// Of elements 2^e for the exponents given, with how often each was seen.
    fn range(bins: &[(i32, u64)]) -> Range {
        let first = bins.iter().map(|b| b.0).min().unwrap_or(0);
        let last = bins.iter().map(|b| b.0).max().unwrap_or(0);
        let mut counts = vec![0; (last - first + 1) as usize];
        bins.iter().for_each(|(e, n)| counts[(e - first) as usize] += n);
        Range {
            name: "t".into(),
            side: Side::Forward,
            shape: vec![],
            count: counts.iter().sum(),
            zeros: 0,
            not_finite: 0,
            max: if bins.is_empty() { 0.0 } else { f64::from(last).exp2() },
            shares: vec![],
            histogram: Histogram { first, counts },
        }
    }

    fn why(bins: &[(i32, u64)], scale: Option<f64>) -> String {
        let r = range(bins);
        match judge(&[(&r, scale.is_some())], DType::F16, scale.unwrap_or(1.0)) {
            Judged::Lost(why) => why.to_string(),
            Judged::Held => "held".into(),
            Judged::Unknown => "unknown".into(),
        }
    }

    #[test]
    fn underflow_counts_as_overflow_does() {
        assert_eq!(why(&[(0, 10), (-10, 10)], None), "held");
        assert!(why(&[(15, 1), (0, 9)], None).contains("f16 holds 65504"));
        // Nothing above the smallest normal number: digits go everywhere.
        assert!(why(&[(-15, 9)], None).contains("has 11 bits down to 6.1e-5"));
        assert_eq!(why(&[(-14, 9)], None), "held");
        // More than half rounded to 0.
        assert!(why(&[(0, 4), (-26, 5)], None).starts_with("56 % of what is not zero in `t`"));
        assert_eq!(why(&[(0, 5), (-26, 5)], None), "held");
        assert_eq!(why(&[(0, 4), (-25, 5)], None), "held");
        // The loss scale lifts cotangents.
        assert_eq!(why(&[(-20, 4), (-30, 5)], Some(65536.0)), "held");
        let lost = why(&[(-20, 4), (-42, 5)], Some(65536.0));
        assert!(lost.contains("under the loss scale 65536 too"), "{lost}");
        assert!(why(&[(-40, 4)], Some(65536.0)).contains("under the loss scale 65536"));
        assert_eq!(why(&[], None), "held");
    }

    #[test]
    fn of_parts_the_largest_counts_and_all_must_vanish() {
        let (large, small) = (range(&[(15, 1)]), range(&[(-26, 9), (-3, 1)]));
        let judge = |m: &[(&Range, bool)]| judge(m, DType::F16, 1.0);
        assert!(matches!(judge(&[(&small, false), (&large, false)]), Judged::Lost(_)));
        assert!(matches!(judge(&[(&small, false)]), Judged::Lost(_)));
        let fine = range(&[(0, 9)]);
        assert_eq!(judge(&[(&small, false), (&fine, false)]), Judged::Held);
        assert_eq!(judge(&[]), Judged::Unknown);
    }
}
