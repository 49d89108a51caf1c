//! Measured ranges: how large the values of a model's tensors become. A runtime measures them over
//! some steps; the compiler reads them to know which formats hold them.

use crate::dtype::DType;
use crate::watch::Side;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The version of the file that this crate reads and writes.
pub const RANGES_VERSION: u32 = 1;

/// Formats whose limits a range is counted against.
pub const COUNTED: [DType; 3] = [DType::F16, DType::F8e4m3, DType::F8e5m2];

/// The ranges of a model's tensors over some steps, as `precast profile` writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranges {
    pub version: u32,
    /// The model's name, for people.
    pub model: String,
    /// Of the forward graph with its loss, extents included, first values not, and of what is
    /// trained: what the ranges are of. 16 hexadecimal digits.
    pub digest: String,
    /// Optimizer steps, and batches of each, that were measured.
    pub steps: u64,
    pub accumulate: u32,
    /// In the order of the graph.
    pub tensors: Vec<Range>,
}

/// One tensor's range. Cotangents are those of the loss without a loss scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub name: String,
    pub side: Side,
    pub shape: Vec<u64>,
    /// Elements seen, over all batches.
    pub count: u64,
    pub zeros: u64,
    /// Infinities and NaNs.
    pub not_finite: u64,
    /// Largest magnitude of a finite element.
    pub max: f64,
    /// By format of [`COUNTED`].
    pub shares: Vec<Share>,
    pub histogram: Histogram,
}

/// What one format would lose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    pub format: DType,
    /// Share of the elements that are not zero and smaller in magnitude than the smallest normal
    /// number.
    pub below: f64,
    /// Share of the elements larger in magnitude than the largest finite number.
    pub above: f64,
}

/// Elements by binary exponent: `counts[i]` of them have a magnitude in
/// [2^(first+i), 2^(first+i+1)). Subnormal numbers of f32 count under −127.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    pub first: i32,
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Exponents with their counts, empty ones left out.
    pub fn bins(&self) -> impl Iterator<Item = (i32, u64)> + '_ {
        let all = self.counts.iter().enumerate().map(|(i, &n)| (self.first + i as i32, n));
        all.filter(|(_, n)| *n > 0)
    }

    /// Elements of a magnitude below 2^`exponent`.
    pub fn below(&self, exponent: i32) -> u64 {
        self.bins().take_while(|(e, _)| *e < exponent).map(|(_, n)| n).sum()
    }
}

impl Range {
    pub fn share(&self, format: DType) -> Option<Share> {
        self.shares.iter().find(|s| s.format == format).copied()
    }
}

impl Ranges {
    /// The file's text: one tensor a line. The same ranges give the same bytes.
    pub fn to_json(&self) -> String {
        let mut out = format!(
            "{{\n\"version\": {}, \"model\": {}, \"digest\": {}, \"steps\": {}, \"accumulate\": {},\n\"tensors\": [",
            self.version,
            json(&self.model),
            json(&self.digest),
            self.steps,
            self.accumulate
        );
        for (i, t) in self.tensors.iter().enumerate() {
            out += if i > 0 { ",\n" } else { "\n" };
            out += &json(t);
        }
        out += "\n]}\n";
        out
    }

    /// Reads a file and checks that it makes sense by itself.
    ///
    /// # Errors
    /// What is wrong with it, on one line.
    pub fn from_json(text: &str) -> Result<Ranges, String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head =
            serde_json::from_str(text).map_err(|e| format!("this is no file of ranges: {e}"))?;
        if head.version != RANGES_VERSION {
            return Err(format!(
                "these ranges have version {}; this program reads version {RANGES_VERSION}: \
                 measure them again",
                head.version
            ));
        }
        let ranges: Ranges =
            serde_json::from_str(text).map_err(|e| format!("the file is damaged: {e}"))?;
        ranges.check()?;
        Ok(ranges)
    }

    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        for t in &self.tensors {
            let fault = |what: &str| Err(format!("the file is damaged: `{}` {what}", t.name));
            if !names.insert(&t.name) {
                return fault("stands in it twice");
            }
            if !t.max.is_finite() || t.max < 0.0 {
                return fault("has a largest magnitude that is no magnitude");
            }
            let sum = t.histogram.counts.iter().try_fold(0u64, |n, c| n.checked_add(*c));
            let sum = sum.and_then(|n| n.checked_add(t.zeros)?.checked_add(t.not_finite));
            if sum != Some(t.count) {
                return fault("has a histogram that does not add up to its elements");
            }
            let last = i64::from(t.histogram.first) + t.histogram.counts.len() as i64;
            if !t.histogram.counts.is_empty() && !(-127..=127).contains(&t.histogram.first)
                || last > 128
            {
                return fault("has a histogram over exponents that f32 does not have");
            }
            let share = |x: f64| (0.0..=1.0).contains(&x);
            if !t.shares.iter().all(|s| share(s.below) && share(s.above)) {
                return fault("has a share outside [0, 1]");
            }
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<&Range> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

fn json<T: Serialize + ?Sized>(x: &T) -> String {
    serde_json::to_string(x).expect("all keys are strings")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Ranges {
        let range = Range {
            name: "fc1".into(),
            side: Side::Forward,
            shape: vec![2, 3],
            count: 6,
            zeros: 1,
            not_finite: 0,
            max: 1e5,
            shares: COUNTED.map(|format| Share { format, below: 0.5, above: 0.25 }).to_vec(),
            histogram: Histogram { first: -3, counts: vec![2, 0, 3] },
        };
        let digest = "0123456789abcdef".into();
        let (model, tensors) = ("m".into(), vec![range]);
        Ranges { version: RANGES_VERSION, model, digest, steps: 2, accumulate: 1, tensors }
    }

    #[test]
    fn a_file_reads_back() {
        let r = ranges();
        let text = r.to_json();
        assert_eq!(Ranges::from_json(&text).unwrap(), r);
        assert_eq!(text.lines().count(), 5);
        assert_eq!(r.get("fc1").unwrap().histogram.below(-2), 2);
        assert_eq!(r.get("fc1").unwrap().histogram.below(-1), 2);
        assert_eq!(r.get("fc1").unwrap().histogram.below(0), 5);
    }

    #[test]
    fn a_file_that_contradicts_itself_is_refused() {
        let refused = |edit: &dyn Fn(&mut Ranges)| {
            let mut r = ranges();
            edit(&mut r);
            Ranges::from_json(&r.to_json()).unwrap_err()
        };
        assert!(refused(&|r| r.version = 9).contains("version 9"));
        assert!(refused(&|r| r.tensors[0].count = 7).contains("add up"));
        assert!(refused(&|r| r.tensors[0].max = -1.0).contains("magnitude"));
        assert!(refused(&|r| r.tensors[0].histogram.first = 127).contains("exponents"));
        assert!(refused(&|r| r.tensors[0].shares[0].above = 1.5).contains("share"));
        assert!(refused(&|r| r.tensors.push(r.tensors[0].clone())).contains("twice"));
        assert!(Ranges::from_json("{}").unwrap_err().contains("no file of ranges"));
        assert!(Ranges::from_json("{\"version\": 1}").unwrap_err().contains("damaged"));
    }
}
