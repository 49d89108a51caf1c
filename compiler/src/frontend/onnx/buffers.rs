//! Whether an initializer is a buffer where no exporter says so: told from its name and its values.
//!
//! A buffer is an initializer like any other in a file of the TorchScript exporter. Names here are
//! those that modules of transformers, timm, torchvision, diffusers and detectors register as
//! buffers and that none of them uses for a parameter.

use super::source::{Initializer, Source, Storage};
use super::tensor::{Data, Elem, Tensor};

/// Last parts of names that are buffers.
const NAMES: &[&str] = &[
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "anchor_grid",
    "anchor_points",
    "anchors",
    "blur_kernel",
    "causal_mask",
    "cos_cached",
    "data_mean",
    "data_std",
    "decoder_mean",
    "decoder_std",
    "embed_scale",
    "encoder_mean",
    "encoder_std",
    "final_logits_bias",
    "forward_basis",
    "freqs_cis",
    "freqs_cos",
    "freqs_sin",
    "hann_window",
    "image_mean",
    "image_std",
    "inv_freq",
    "inverse_basis",
    "latents_mean",
    "latents_std",
    "mel_basis",
    "mel_filters",
    "original_inv_freq",
    "pixel_mean",
    "pixel_std",
    "posterior_variance",
    "relative_coords_table",
    "running_std",
    "sin_cached",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "strides",
    "zero_k_bias",
];

/// Words in the last part of a name that a buffer may have and a parameter seldom has.
const WORDS: &[&str] = &[
    "alphas", "anchor", "anchors", "basis", "betas", "buf", "buffer", "cache", "cached", "cis",
    "const", "constant", "coords", "cos", "filt", "filter", "filters", "freq", "freqs", "grid",
    "mask", "masked", "masks", "mean", "means", "pe", "queue", "sin", "sigmas", "std", "stds",
    "stride", "variance", "window",
];

/// Words that say that a name is a parameter's after all.
const TRAINED: &[&str] = &["token", "tokens", "weight", "embed", "embedding", "embeddings"];

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Whether the name is one of a buffer. `known` says which names the model has: the vectors of a
/// spectral norm are told by the matrix beside them.
pub fn named(name: &str, known: &dyn Fn(&str) -> bool) -> bool {
    let vector = |end: &str| {
        let matrix = |of: &str| known(&format!("{of}_orig")) || known(&format!("{of}original"));
        name.strip_suffix(end).is_some_and(|of| {
            matrix(of) || of.strip_suffix("0.").is_some_and(|of| known(&format!("{of}original")))
        })
    };
    NAMES.contains(&last(name).trim_start_matches('_')) || vector("_u") || vector("_v")
}

/// Whether the name is one that a buffer may have.
pub fn doubtful(name: &str) -> bool {
    let words = || last(name).split('_');
    words().any(|w| WORDS.contains(&w)) && !words().any(|w| TRAINED.contains(&w))
}

/// Largest table whose values are looked at.
const MOST: usize = 1 << 22;

/// Whether a table of positions consists of sinusoids: every column (of the first twelve and the
/// last) is one of the position, which `t[p+1] + t[p−1] = 2 cos(ω) t[p]` tells, and its first row is
/// sin 0 and cos 0. No training leaves a table like that.
pub fn is_sinusoidal(src: &Source, name: &str, init: &Initializer) -> bool {
    // [1,rows,columns] and [rows,1,columns] are tables too.
    let wide: Vec<usize> = init.shape.iter().copied().filter(|&n| n != 1).collect();
    let &[rows, columns] = &wide[..] else { return false };
    // What a few roundings of numbers up to 1 may add up to.
    let near = match init.elem {
        Elem::Bf16 => 3e-2,
        Elem::F16 => 6e-3,
        _ => 2e-3,
    };
    if rows < 6
        || columns < 2
        || init.elements() > MOST
        || matches!(init.storage, Storage::External { .. }) && src.lacks(init)
    {
        return false;
    }
    let Ok(Tensor { data: Data::Real(v), .. }) = src.literal(name) else { return false };
    let at = |r: usize, c: usize| v[r * columns + c];
    // An offset of some rows is usual, so the first row of the sinusoid is looked for, and so is a row
    // of zeros for padding.
    let empty = |r: usize| (0..columns).all(|c| at(r, c) == 0.0);
    let first = |r: usize| (0..columns).all(|c| at(r, c) == 0.0 || (at(r, c) - 1.0).abs() < 1e-6);
    let ones = |r: usize| (0..columns).filter(|&c| at(r, c) != 0.0).count();
    let start = (0..rows.min(4)).find(|&r| first(r) && ones(r) == columns / 2);
    let Some(start) = start.filter(|s| s + 5 < rows) else { return false };
    let wave = |c: usize| {
        // The steepest of the first rows tells the frequency best.
        let steep = |r: &usize| at(*r, c).abs();
        let whole = |r: &usize| !(r - 1..=r + 1).any(&empty);
        let first = (start + 1..(start + 9).min(rows - 1)).filter(whole);
        let Some(m) = first.max_by(|a, b| steep(a).total_cmp(&steep(b))) else { return false };
        if at(m, c).abs() < 1e-4 {
            // Too slow to move in these rows: sin ω for an ω near 0.
            return (start..rows).all(|r| at(r, c).abs() <= 1.0 + near);
        }
        let twice = (at(m + 1, c) + at(m - 1, c)) / at(m, c);
        (start + 1..rows - 1).filter(whole).all(|r| {
            let next = twice * at(r, c) - at(r - 1, c);
            (next - at(r + 1, c)).abs() < near && at(r, c).abs() <= 1.0 + near
        })
    };
    (0..columns.min(12)).chain([columns - 1]).all(wave)
}

/// The only row of a table of two axes that is all zeros, as `nn.Embedding(padding_idx=…)` begins.
pub fn zero_row(src: &Source, name: &str, init: &Initializer) -> Option<usize> {
    let &[rows, columns] = &init.shape[..] else { return None };
    if rows < 2 || columns == 0 || init.elements() > MOST || src.lacks(init) {
        return None;
    }
    let Ok(Tensor { data: Data::Real(v), .. }) = src.literal(name) else { return None };
    let mut zeros =
        v.chunks_exact(columns).enumerate().filter(|(_, r)| r.iter().all(|x| *x == 0.0));
    let (row, _) = zeros.next()?;
    zeros.next().is_none().then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_buffers_are_told_from_those_of_parameters() {
        let none = |_: &str| false;
        for name in ["model.rotary.inv_freq", "embed_scale", "final_logits_bias", "_latents_mean"] {
            assert!(named(name, &none), "{name}");
        }
        for name in
            ["encoder.bias", "logit_scale", "mean", "mask_token", "rope.freqs", "fc.weight_v"]
        {
            assert!(!named(name, &none), "{name}");
        }
        let spectral =
            |n: &str| ["fc.weight_orig", "c.parametrizations.weight.original"].contains(&n);
        for name in ["fc.weight_u", "fc.weight_v", "c.parametrizations.weight.0._u"] {
            assert!(named(name, &spectral), "{name}");
        }
        for name in ["attn.mask", "norm.mean", "pe", "rope.freqs", "queue", "pixel_mask"] {
            assert!(doubtful(name), "{name}");
        }
        for name in [
            "mask_token",
            "h.0.attn.c_attn.weight",
            "logit_scale",
            "pos_embed",
            "gamma_1",
            "attention_biases",
            "relative_position_bias_table",
            "cls_token",
            "mask_embed",
        ] {
            assert!(!doubtful(name), "{name}");
        }
    }
}
