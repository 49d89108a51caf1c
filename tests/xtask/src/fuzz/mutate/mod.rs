//! Changes to inputs. Bytes are changed as bytes, and files with a structure as what they hold: a
//! field of a protobuf message, a leaf of a JSON or TOML document, a word of a text. What a mutator
//! writes is mostly well formed, so that what is behind the reader is reached.

pub mod bytes;
pub mod rng;
pub mod tensors;
pub mod tree;
pub mod wire;
pub mod words;

use rng::Rng;

/// What an input's structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An ONNX model.
    Onnx,
    Json,
    Toml,
    /// A JSON header behind its length, then numbers.
    Safetensors,
    /// Words and lines.
    Text,
}

/// Integers at which readers break: around the ends of types and of powers of two.
pub const INTEGERS: &[i64] = &[
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    8,
    16,
    64,
    127,
    128,
    255,
    256,
    1023,
    65_535,
    65_536,
    1 << 20,
    1 << 31,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 32,
    1 << 40,
    1 << 53,
    i64::MAX,
    i64::MIN,
];

/// Reals likewise, as text.
pub const REALS: &[&str] = &[
    "0.0", "-0.0", "1.0", "-1.0", "0.5", "1e-45", "1e-300", "1e39", "3.4e38", "1e308", "1e-8",
    "nan", "inf", "-inf", "65504.0", "0.1",
];

/// A changed copy of `input`. `other` is another input of the same kind, to take parts from.
pub fn mutate(format: Format, input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = input.to_vec();
    // Mostly one change: two are more often refused for the first.
    for _ in 0..1 + rng.below(4) / 2 + rng.below(4) / 3 {
        // Noise finds what structure cannot say: bytes that are no message, text that is no document.
        let structured = match rng.one_in(5) {
            true => None,
            false => match format {
                Format::Onnx => wire::mutate(&out, other, rng),
                Format::Json => tree::json(&out, other, rng),
                Format::Toml => match rng.one_in(3) {
                    true => Some(words::mutate(&out, other, rng)),
                    false => tree::toml(&out, other, rng),
                },
                Format::Safetensors => tensors::mutate(&out, other, rng),
                Format::Text => Some(words::mutate(&out, other, rng)),
            },
        };
        out = structured.unwrap_or_else(|| bytes::mutate(&out, other, rng));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Structure survives structured changes, and most changes are changes.
    #[test]
    fn structured_changes_stay_well_formed() {
        let json = br#"{"a": [1, 2, {"b": "x"}], "c": 0.5}"#;
        let toml = b"model = \"m\"\n[data]\nbatch = 4\nscale = { x = 0.5 }\n";
        let (mut changed, mut rng) = (0, Rng::new(1));
        for _ in 0..400 {
            let out = tree::json(json, json, &mut rng).expect("it is JSON");
            let before: serde_json::Value = serde_json::from_slice(json).unwrap();
            changed +=
                usize::from(serde_json::from_slice::<serde_json::Value>(&out).unwrap() != before);
            if let Some(out) = tree::toml(toml, toml, &mut rng) {
                toml::from_str::<toml::Table>(std::str::from_utf8(&out).unwrap()).unwrap();
            }
        }
        assert!(changed > 300, "{changed}");
    }

    /// The same seed, the same inputs.
    #[test]
    fn changes_follow_from_the_seed() {
        let list = |seed| -> Vec<Vec<u8>> {
            let mut rng = Rng::new(seed);
            (0..50).map(|_| mutate(Format::Text, b"a = 1\nb = 2\n", b"c = 3\n", &mut rng)).collect()
        };
        assert_eq!(list(7), list(7));
        assert_ne!(list(7), list(8));
    }
}
