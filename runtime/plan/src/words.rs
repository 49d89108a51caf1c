//! Which of some known words a person may have meant.

use std::fmt::Display;

/// The known word that `word` is a slip of: the same in other cases of letters, else the closest
/// within a third of its length in edits (insertions, deletions, substitutions, and swaps of
/// neighbours), which is rustc's bound. `None` where no word is that close.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = word.chars().count().max(3) / 3;
    known
        .into_iter()
        .map(|k| {
            let same = k.to_lowercase() == word.to_lowercase();
            (if same { 0 } else { strsim::damerau_levenshtein(word, k) }, k)
        })
        // A word that shares no letter is another word, however short both are.
        .filter(|(d, k)| *d <= most && *d < k.chars().count().max(word.chars().count()))
        .min_by_key(|(d, k)| (*d, k.len().abs_diff(word.len())))
        .map(|(_, k)| k)
}

/// ``did you mean `x`?`` where a name is near, else what there is, of `what`.
pub fn suggestion(what: &str, word: &str, known: &[&str]) -> String {
    const MOST: usize = 12;
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("it has no {what}"),
        None => {
            let listed: Vec<&str> = known.iter().copied().take(MOST).collect();
            let more = match known.len().saturating_sub(MOST) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            format!("its {what} are {}{more}", listed.join(", "))
        }
    }
}

/// How the extents of two tensors differ, axes counted from 0: ``axis 1 is 3 in the file and 4 in the
/// model``, where `have` and `want` are called so.
pub fn difference<T: PartialEq + Display>(
    (have, of): (&[T], &str),
    (want, other): (&[T], &str),
) -> String {
    if have.len() != want.len() {
        let axes = |n: usize| if n == 1 { "1 axis".to_string() } else { format!("{n} axes") };
        return format!("it has {} {of} and {} {other}", axes(have.len()), axes(want.len()));
    }
    match have.iter().zip(want).enumerate().find(|(_, (a, b))| a != b) {
        Some((axis, (a, b))) => format!("axis {axis} is {a} {of} and {b} {other}"),
        None => "the shapes are equal".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_differ_in_an_axis_or_in_their_number() {
        let said = |a: &[u64], b: &[u64]| difference((a, "in the file"), (b, "in the model"));
        assert_eq!(said(&[2, 3, 5], &[2, 4, 6]), "axis 1 is 3 in the file and 4 in the model");
        assert_eq!(said(&[6], &[2, 3]), "it has 1 axis in the file and 2 axes in the model");
        assert_eq!(said(&[2], &[2]), "the shapes are equal");
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        let near = |word: &str, known: &[&'static str]| nearest(word, known.iter().copied());
        for (word, known, want) in [
            ("modle", "model", Some("model")),
            ("Batch", "batch", Some("batch")),
            ("bacth", "batch", Some("batch")),
            ("bf6", "bf16", Some("bf16")),
            ("lr", "l", Some("l")),
            ("nosuch", "loss", None),
            ("x", "y", None),
            ("fc1", "fc2", Some("fc2")),
            ("weight", "bias", None),
            ("momentun", "momentum", Some("momentum")),
            ("", "a", None),
        ] {
            assert_eq!(near(word, &[known]), want, "{word} and {known}");
        }
        assert_eq!(near("out.logit", &["out.logic", "out.logits"]), Some("out.logic"));
        assert_eq!(near("SEQ", &["sep", "seq"]), Some("seq"));
    }

    #[test]
    fn where_nothing_is_near_what_there_is_is_listed() {
        assert_eq!(suggestion("inputs", "imput", &["input", "mask"]), "did you mean `input`?");
        assert_eq!(suggestion("inputs", "tokens", &["x", "y"]), "its inputs are x, y");
        assert_eq!(suggestion("inputs", "x", &[]), "it has no inputs");
        let many = ["aa"; 14];
        assert!(suggestion("columns", "zzz", &many).ends_with("aa and 2 more"));
    }
}
