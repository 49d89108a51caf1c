//! What a model may be written with in the place of operators that Precast does not have.

/// By operator: what to write instead, where there is something that would work.
const INSTEAD: &[(&str, &str)] = &[
    ("Bernoulli", "draw the noise outside and give it as an input of the data"),
    ("BitShift", "multiply or divide the integers by a power of two"),
    ("CenterCropPad", "use `Slice` and `Pad`, whose extents are known"),
    ("CumProd", "use `exp(cumsum(log(x)))` where x is positive"),
    ("DeformConv", "use `GridSample` for the taps, then a product"),
    ("DequantizeLinear", "export the network before it is quantised"),
    ("DynamicQuantizeLinear", "export the network before it is quantised"),
    ("MaxRoiPool", "use `GridSample` and `MaxPool`"),
    ("MaxUnpool", "use `Resize` or `ConvTranspose`"),
    ("MelWeightMatrix", "store the matrix as a constant"),
    ("Multinomial", "draw the samples outside and give them as an input of the data"),
    (
        "NonMaxSuppression",
        "end the exported network at the boxes and scores; suppression follows training",
    ),
    ("QLinearConv", "export the network before it is quantised"),
    ("QLinearMatMul", "export the network before it is quantised"),
    ("QuantizeLinear", "export the network before it is quantised"),
    ("RandomNormal", "draw the noise outside and give it as an input of the data"),
    ("RandomNormalLike", "draw the noise outside and give it as an input of the data"),
    ("RandomUniform", "draw the noise outside and give it as an input of the data"),
    ("RandomUniformLike", "draw the noise outside and give it as an input of the data"),
    ("RoiAlign", "use `GridSample` with the boxes' points"),
    ("STFT", "multiply windows by constant matrices of cosines and sines"),
    ("Scan", "unroll it, or use `LSTM`, `GRU` or `RNN` where it is one"),
    ("TensorScatter", "use `ScatterND`"),
    ("Unique", "a plan has fixed extents: count with a mask over all values"),
    ("Upsample", "export with opset 13 or later, which has `Resize`"),
];

/// What to write in the place of an operator.
pub fn instead_of(op: &str) -> Option<&'static str> {
    INSTEAD.iter().find(|(name, _)| *name == op).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_supported_needs_nothing_instead() {
        for (op, _) in INSTEAD {
            let evaluated = ["Unique"];
            assert!(!super::super::SUPPORTED.contains(op) || evaluated.contains(op), "{op}");
        }
        assert!(INSTEAD.windows(2).all(|w| w[0].0 < w[1].0), "sorted");
    }
}
