//! Measuring ranges: magnitudes by binary exponent, counted while a plan runs.

use precast_plan::{COUNTED, Histogram, Range, Share, Watch};

/// What has been seen of one tensor.
#[derive(Clone, Debug)]
struct Tally {
    /// By biased exponent of f32; 0 holds zeros and subnormal numbers, 255 what is not finite.
    exponents: [u64; 256],
    zeros: u64,
    /// Bits of the largest finite magnitude: as integers they are ordered as the magnitudes.
    max: u32,
    above: [u64; COUNTED.len()],
}

/// Counts the elements of watched tensors.
#[derive(Debug)]
pub struct Meter {
    tallies: Vec<Tally>,
}

impl Meter {
    /// For so many watches.
    pub fn new(watches: usize) -> Meter {
        let empty = Tally { exponents: [0; 256], zeros: 0, max: 0, above: [0; COUNTED.len()] };
        Meter { tallies: vec![empty; watches] }
    }

    /// Counts `values` of watch `at`.
    pub fn see(&mut self, at: usize, values: &[f32]) {
        let t = &mut self.tallies[at];
        let limits = COUNTED.map(|d| (d.facts().max as f32).to_bits());
        for x in values {
            let magnitude = x.to_bits() & 0x7fff_ffff;
            let exponent = (magnitude >> 23) as usize;
            t.exponents[exponent] += 1;
            if exponent == 255 {
                continue;
            }
            t.zeros += u64::from(magnitude == 0);
            t.max = t.max.max(magnitude);
            for (n, limit) in t.above.iter_mut().zip(limits) {
                *n += u64::from(magnitude > limit);
            }
        }
    }

    /// The ranges, one a watch, in order.
    pub fn ranges(&self, watches: &[Watch]) -> Vec<Range> {
        watches.iter().zip(&self.tallies).map(|(w, t)| t.range(w)).collect()
    }
}

impl Tally {
    fn range(&self, watch: &Watch) -> Range {
        let mut counts = self.exponents;
        let not_finite = std::mem::take(&mut counts[255]);
        counts[0] -= self.zeros;
        let count = self.exponents.iter().sum::<u64>();
        let first = counts.iter().position(|&n| n > 0).unwrap_or(0);
        let last = counts.iter().rposition(|&n| n > 0).map_or(first, |i| i + 1);
        let histogram =
            Histogram { first: first as i32 - 127, counts: counts[first..last].to_vec() };
        let share = |n: u64| n as f64 / count.max(1) as f64;
        let shares = COUNTED.iter().zip(self.above).map(|(&format, above)| {
            // Smallest normal numbers are powers of two, so the histogram is exact.
            let normal = format.facts().min_normal.log2() as i32;
            let below = share(histogram.below(normal));
            Share { format, below, above: share(above) }
        });
        Range {
            name: watch.name.clone(),
            side: watch.side,
            shape: watch.shape.clone(),
            count,
            zeros: self.zeros,
            not_finite,
            max: f64::from(f32::from_bits(self.max)),
            shares: shares.collect(),
            histogram: histogram.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use precast_plan::{Access, DType, Side};

    fn measure(values: &[f32]) -> Range {
        let watch = Watch {
            name: "x".into(),
            op: "x".into(),
            kind: "input".into(),
            side: Side::Input,
            stored: Some(DType::F32),
            shape: vec![values.len() as u64],
            access: Access { tensor: 0, offset: 0, strides: vec![1] },
            after: None,
            operands: vec![],
            infinite_literal: false,
        };
        let mut meter = Meter::new(1);
        meter.see(0, values);
        meter.ranges(&[watch]).remove(0)
    }

    #[test]
    fn magnitudes_are_counted_by_their_exponents_and_against_every_format() {
        let r = measure(&[0.0, -0.0, 1.0, -1.5, 0.25, 65504.0, -65505.0, f32::NAN, 1e-45, 6e-5]);
        assert_eq!((r.count, r.zeros, r.not_finite), (10, 2, 1));
        assert_eq!(r.max, 65505.0);
        let bins: Vec<_> = r.histogram.bins().collect();
        assert_eq!(bins, [(-127, 1), (-15, 1), (-2, 1), (0, 2), (15, 2)]);
        // 6e-5 is just below f16's smallest normal, 2^-14; 0.25 is above E4M3's, 2^-6.
        let share = |d| r.share(d).map(|s| (s.below, s.above)).unwrap();
        assert_eq!(share(DType::F16), (0.2, 0.1));
        assert_eq!(share(DType::F8e4m3), (0.2, 0.2));
        assert_eq!(share(DType::F8e5m2), (0.2, 0.2));
        let r = measure(&[f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!((r.max, r.not_finite, r.histogram.counts.len()), (0.0, 2, 0));
        assert_eq!(r.share(DType::F16).unwrap().above, 0.0);
    }
}
