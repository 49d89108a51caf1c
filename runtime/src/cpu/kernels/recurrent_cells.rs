//! Gates of recurrent cells, one row of f32 at a time. Equations: [`precast_plan::RecurrentCell`].

use super::vmath;
use crate::multiversion;
use precast_plan::Squash;

/// Applies an activation in place.
pub fn squash(f: Squash, x: &mut [f32]) {
    match f {
        Squash::Sigmoid => vmath::sigmoid_in_place(x),
        Squash::Tanh => vmath::tanh_in_place(x),
        Squash::Relu => relu(x),
    }
}

/// The derivative of an activation, from its value y: `(p + y) (1 − y)`, or a step. The factors are
/// exact where y is near 1, unlike `y − y²`.
#[derive(Clone, Copy)]
pub struct Slope {
    p: f32,
    step: bool,
}

impl Slope {
    fn of(f: Squash) -> Slope {
        let p = if f == Squash::Tanh { 1.0 } else { 0.0 };
        Slope { p, step: f == Squash::Relu }
    }

    #[inline(always)]
    fn at(self, y: f32) -> f32 {
        let curve = (self.p + y) * (1.0 - y);
        let step = if y > 0.0 { 1.0 } else { 0.0 };
        if self.step { step } else { curve }
    }
}

multiversion! {
    fn relu<L>(x: &mut [f32]) {
        for x in x {
            // NaN stays NaN.
            *x = if *x < 0.0 { 0.0 } else { *x };
        }
    }

    /// `y += x`.
    pub fn add<L>(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// `y *= x`.
    pub fn scale<L>(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y *= x;
        }
    }

    /// `y = a b`.
    pub fn product<L>(y: &mut [f32], a: &[f32], b: &[f32]) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = a * b;
        }
    }

    /// `y += a b`.
    pub fn add_product<L>(y: &mut [f32], a: &[f32], b: &[f32]) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = L::fma(a, b, *y);
        }
    }

    /// `h = (1 − z) n + z h`.
    pub fn blend<L>(z: &[f32], n: &[f32], h: &mut [f32]) {
        for ((h, &z), &n) in h.iter_mut().zip(z).zip(n) {
            *h = L::fma(z, *h, (1.0 - z) * n);
        }
    }

    /// `c = f c + i g`.
    fn remember<L>(i: &[f32], f: &[f32], g: &[f32], c: &mut [f32]) {
        for (((c, &i), &f), &g) in c.iter_mut().zip(i).zip(f).zip(g) {
            *c = L::fma(f, *c, i * g);
        }
    }

    fn through_slope<L>(s: Slope, g: &mut [f32], d: &[f32], y: &[f32]) {
        for ((g, &d), &y) in g.iter_mut().zip(d).zip(y) {
            *g = d * s.at(y);
        }
    }

    fn lstm_slopes<L>(
        s: [Slope; 3],
        g: &mut [f32],
        kept: &[f32],
        peephole: &[f32],
        dc: &mut [f32],
        dh: &[f32],
        top: &[f32],
    ) {
        let h = dh.len();
        let (di, rest) = g.split_at_mut(h);
        let (d_o, rest) = rest.split_at_mut(h);
        let (df, dn) = rest.split_at_mut(h);
        let (df, dn) = (&mut df[..h], &mut dn[..h]);
        let (i, o, f) = (&kept[..h], &kept[h..][..h], &kept[2 * h..][..h]);
        let (n, c) = (&kept[3 * h..][..h], &kept[4 * h..][..h]);
        let (pi, po, pf) = (&peephole[..h], &peephole[h..][..h], &peephole[2 * h..][..h]);
        let (dc, top) = (&mut dc[..h], &top[..h]);
        for j in 0..h {
            d_o[j] = dh[j] * top[j] * s[0].at(o[j]);
            let all = dc[j] + L::fma(d_o[j], po[j], dh[j] * o[j] * s[2].at(top[j]));
            di[j] = all * n[j] * s[0].at(i[j]);
            df[j] = all * c[j] * s[0].at(f[j]);
            dn[j] = all * i[j] * s[1].at(n[j]);
            dc[j] = L::fma(df[j], pf[j], L::fma(di[j], pi[j], all * f[j]));
        }
    }

    fn lstm_plain<L>(
        s: [Slope; 3],
        g: &mut [f32],
        kept: &[f32],
        dc: &mut [f32],
        dh: &[f32],
        top: &[f32],
    ) {
        let h = dh.len();
        let (di, rest) = g.split_at_mut(h);
        let (d_o, rest) = rest.split_at_mut(h);
        let (df, dn) = rest.split_at_mut(h);
        let (df, dn) = (&mut df[..h], &mut dn[..h]);
        let (i, o, f) = (&kept[..h], &kept[h..][..h], &kept[2 * h..][..h]);
        let (n, c) = (&kept[3 * h..][..h], &kept[4 * h..][..h]);
        let (dc, top) = (&mut dc[..h], &top[..h]);
        for j in 0..h {
            d_o[j] = dh[j] * top[j] * s[0].at(o[j]);
            let all = L::fma(dh[j] * o[j], s[2].at(top[j]), dc[j]);
            di[j] = all * n[j] * s[0].at(i[j]);
            df[j] = all * c[j] * s[0].at(f[j]);
            dn[j] = all * i[j] * s[1].at(n[j]);
            dc[j] = all * f[j];
        }
    }

    fn blend_slopes<L>(
        s: [Slope; 2],
        g: &mut [f32],
        kept: &[f32],
        old: &[f32],
        dh: &mut [f32],
    ) {
        let h = dh.len();
        let (dz, rest) = g.split_at_mut(h);
        let dn = &mut rest[h..][..h];
        let (z, n, old) = (&kept[..h], &kept[2 * h..][..h], &old[..h]);
        for j in 0..h {
            dz[j] = dh[j] * (old[j] - n[j]) * s[0].at(z[j]);
            dn[j] = dh[j] * (1.0 - z[j]) * s[1].at(n[j]);
            dh[j] *= z[j];
        }
    }

    fn product_slope<L>(s: Slope, g: &mut [f32], a: &[f32], b: &[f32], y: &[f32]) {
        for (((g, &a), &b), &y) in g.iter_mut().zip(a).zip(b).zip(y) {
            *g = a * b * s.at(y);
        }
    }
}

/// A step of an LSTM: `pre` holds the gates before their activations, and after; `c` and `h` become
/// the new state.
pub fn lstm(
    s: [Squash; 3],
    pre: &mut [f32],
    peephole: Option<&[f32]>,
    c: &mut [f32],
    h: &mut [f32],
) {
    let n = h.len();
    if let Some(p) = peephole {
        add_product(&mut pre[..n], &p[..n], c);
        add_product(&mut pre[2 * n..3 * n], &p[2 * n..], c);
        squash(s[0], &mut pre[..n]);
        squash(s[0], &mut pre[2 * n..3 * n]);
    } else {
        squash(s[0], &mut pre[..3 * n]);
    }
    squash(s[1], &mut pre[3 * n..]);
    remember(&pre[..n], &pre[2 * n..3 * n], &pre[3 * n..], c);
    if let Some(p) = peephole {
        add_product(&mut pre[n..2 * n], &p[n..2 * n], c);
        squash(s[0], &mut pre[n..2 * n]);
    }
    h.copy_from_slice(c);
    squash(s[2], h);
    scale(h, &pre[n..2 * n]);
}

/// A step back: cotangents of the gates before their activations into `g`; `dc` becomes that of the
/// old c. `top` is room for a row.
pub fn lstm_back(
    s: [Squash; 3],
    g: &mut [f32],
    kept: &[f32],
    peephole: Option<&[f32]>,
    dc: &mut [f32],
    dh: &[f32],
    top: &mut [f32],
) {
    let n = dh.len();
    top.copy_from_slice(&kept[4 * n..]);
    remember(&kept[..n], &kept[2 * n..3 * n], &kept[3 * n..4 * n], top);
    squash(s[2], top);
    let slopes = s.map(Slope::of);
    match peephole {
        Some(p) => lstm_slopes(slopes, g, kept, p, dc, dh, top),
        None => lstm_plain(slopes, g, kept, dc, dh, top),
    }
}

/// `g = d f'`, where `y` is the activation's value.
pub fn through(f: Squash, g: &mut [f32], d: &[f32], y: &[f32]) {
    through_slope(Slope::of(f), g, d, y);
}

/// A step of a GRU back through `h' = (1 − z) n + z h`: cotangents of z and n before their
/// activations; `dh` becomes what reaches the old state directly.
pub fn blend_back(s: [Squash; 3], g: &mut [f32], kept: &[f32], old: &[f32], dh: &mut [f32]) {
    blend_slopes([s[0], s[1]].map(Slope::of), g, kept, old, dh);
}

/// The cotangent of a reset gate behind the product, from that of n.
pub fn reset_after_back(f: Squash, g: &mut [f32], kept: &[f32]) {
    let h = g.len() / 3;
    let (first, dn) = g.split_at_mut(2 * h);
    product_slope(Slope::of(f), &mut first[h..], dn, &kept[3 * h..], &kept[h..2 * h]);
}

/// The cotangent of a reset gate before the product, from that of `r h`.
pub fn reset_back(f: Squash, g: &mut [f32], kept: &[f32], old: &[f32], held: &[f32]) {
    let h = g.len();
    product_slope(Slope::of(f), g, held, old, &kept[h..2 * h]);
}
