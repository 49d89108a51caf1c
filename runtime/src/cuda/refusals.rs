//! Why candidates of a library are refused.

use std::collections::BTreeMap;

/// The words of each refusal, told in the order of the candidates and not in that of their measured
/// times: steps that are refused for the same reasons then say the same, and are reported as one.
#[derive(Default)]
pub struct Refusals(BTreeMap<usize, String>);

impl Refusals {
    /// Notes why a candidate does not run; the first reason stays.
    pub fn add(&mut self, candidate: usize, why: String) {
        self.0.entry(candidate).or_insert(why);
    }

    /// All reasons, each once; `None` where nothing was refused.
    pub fn words(&self) -> Option<String> {
        let mut words: Vec<&str> = vec![];
        for why in self.0.values() {
            if !words.contains(&why.as_str()) {
                words.push(why);
            }
        }
        (!words.is_empty()).then(|| words.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::Refusals;

    #[test]
    fn reasons_are_told_in_the_order_of_candidates() {
        assert_eq!(Refusals::default().words(), None);
        let told = |order: [usize; 4]| {
            let mut refusals = Refusals::default();
            for c in order {
                refusals.add(c, ["memory", "layout", "memory", "launch"][c].into());
            }
            refusals.words().expect("four were added")
        };
        assert_eq!(told([3, 1, 0, 2]), "memory; layout; launch");
        assert_eq!(told([2, 0, 1, 3]), told([3, 1, 0, 2]));
    }

    #[test]
    fn the_first_reason_of_a_candidate_stays() {
        let mut refusals = Refusals::default();
        refusals.add(0, "memory".into());
        refusals.add(0, "launch".into());
        assert_eq!(refusals.words().as_deref(), Some("memory"));
    }
}
