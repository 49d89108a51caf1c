//! Windows of convolutions and pools over any number of spatial axes.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res};
use crate::frontend::onnx::node::fail;
use crate::ir::ValueId;

/// A window that moves along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Extent of the operand.
    pub size: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    /// Padding in front, behind, and behind that for the last window of `ceil_mode`.
    pub before: usize,
    pub after: usize,
    pub extra: usize,
}

impl Axis {
    /// From the first element of the window to the last.
    pub fn reach(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// All padding behind.
    pub fn behind(&self) -> usize {
        self.after + self.extra
    }

    /// Extent of the result.
    ///
    /// # Errors
    /// P0214 where the window is larger than the padded operand.
    pub fn out(&self) -> Res<usize> {
        let room = self.size + self.before + self.behind();
        room.checked_sub(self.reach()).map(|n| n / self.stride + 1).ok_or_else(|| {
            words(format!("a window of {} in a padded extent of {room}", self.reach()))
        })
    }

    /// Whether the window sees every element once, by itself.
    pub fn is_nothing(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.before + self.behind() == 0
    }

    /// How many elements of the window at each place lie inside the operand or, with `padded`, inside
    /// its padding; that of `ceil_mode` never counts.
    pub fn counts(&self, padded: bool) -> Res<Vec<usize>> {
        let (from, to) = match padded {
            true => (0, self.before + self.size + self.after),
            false => (self.before, self.before + self.size),
        };
        // The first tap at an edge or behind it, of the window at a place.
        let first = |o: usize, edge: usize| {
            edge.saturating_sub(o * self.stride).div_ceil(self.dilation.max(1)).min(self.kernel)
        };
        Ok((0..self.out()?).map(|o| first(o, to) - first(o, from)).collect())
    }
}

/// Reads `strides`, `pads`, `dilations`, `auto_pad` and `ceil_mode` for an operand [n,c,…] and a
/// kernel.
///
/// # Errors
/// P0206 where there is no spatial axis or more than three, and for malformed lists.
pub fn axes(call: &Call, x: &[usize], kernel: &[usize]) -> Res<Vec<Axis>> {
    let spatial = x.len().saturating_sub(2);
    if !(1..=3).contains(&spatial) || kernel.len() != spatial {
        return Err(fail(
            "P0206",
            format!(
                "operand {x:?} with kernel {kernel:?}: one to three spatial axes are supported"
            ),
        ));
    }
    let a = &call.attrs;
    let strides = a.sizes("strides", spatial, 1)?;
    let dilations = a.sizes("dilations", spatial, 1)?;
    let pads = a.sizes("pads", 2 * spatial, 0)?;
    if kernel.iter().chain(&strides).chain(&dilations).any(|&v| v == 0) {
        return Err(fail("P0206", "kernel, stride and dilation are at least 1"));
    }
    let mode = a.string("auto_pad", "NOTSET")?;
    let ceil = a.int("ceil_mode", 0)? != 0;
    (0..spatial)
        .map(|d| {
            let (size, stride) = (x[d + 2], strides[d]);
            let mut axis = Axis {
                size,
                kernel: kernel[d],
                stride,
                dilation: dilations[d],
                before: pads[d],
                after: pads[d + spatial],
                extra: 0,
            };
            let far = (axis.kernel - 1).checked_mul(axis.dilation);
            if far.is_none_or(|r| r > 1 << 40) {
                return Err(words("the window overflows".into()));
            }
            match mode.as_str() {
                "NOTSET" | "" => {}
                "VALID" => (axis.before, axis.after) = (0, 0),
                "SAME_UPPER" | "SAME_LOWER" => {
                    let out = size.div_ceil(stride).max(1);
                    let total = ((out - 1) * stride + axis.reach()).saturating_sub(size);
                    let (small, large) = (total / 2, total - total / 2);
                    (axis.before, axis.after) =
                        if mode == "SAME_UPPER" { (small, large) } else { (large, small) };
                }
                other => return Err(fail("P0206", format!("`auto_pad` is \"{other}\""))),
            }
            let (room, reach) = (size + axis.before + axis.after, axis.reach());
            if ceil && room >= reach {
                let mut out = (room - reach).div_ceil(stride) + 1;
                // A window that would start in the padding behind the operand is left out.
                if (out - 1) * stride >= size + axis.before {
                    out -= 1;
                }
                axis.extra = ((out - 1) * stride + reach).saturating_sub(room);
            }
            Ok(axis)
        })
        .collect()
}

/// Window parameters over two axes, as kernels take them.
pub struct Planar {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Top, left, bottom, right.
    pub pad: [usize; 4],
    pub dilation: [usize; 2],
}

impl Planar {
    pub fn of(a: &Axis, b: &Axis) -> Planar {
        Planar {
            kernel: [a.kernel, b.kernel],
            stride: [a.stride, b.stride],
            pad: [a.before, b.before, a.behind(), b.behind()],
            dilation: [a.dilation, b.dilation],
        }
    }
}

/// An axis that a window leaves alone.
pub fn still(size: usize) -> Axis {
    Axis { size, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0, extra: 0 }
}

/// Applies `f` to a value [n,c,…] over its axes two at a time, from the last: `f` takes [n,c,h,w] and
/// two windows. What has one spatial axis gets another of extent 1 in front; of three the first comes
/// last, alone.
pub fn planes(
    cx: &mut Importer,
    x: ValueId,
    list: &[Axis],
    f: &mut dyn FnMut(&mut Importer, ValueId, &Axis, &Axis) -> Res<ValueId>,
) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let mut whole = shape.clone();
    let (n, c) = (shape[0], shape[1]);
    match *list {
        [w] => {
            let x = cx.reshape(x, &[n, c, 1, w.size])?;
            let y = f(cx, x, &still(1), &w)?;
            whole[2] = w.out()?;
            cx.reshape(y, &whole)
        }
        [h, w] => f(cx, x, &h, &w),
        [d, h, w] => {
            let x = cx.reshape(x, &[n, c * d.size, h.size, w.size])?;
            let y = if h.is_nothing() && w.is_nothing() { x } else { f(cx, x, &h, &w)? };
            (whole[3], whole[4]) = (h.out()?, w.out()?);
            let y = if d.is_nothing() {
                y
            } else {
                let y = cx.reshape(y, &[n, c, d.size, whole[3] * whole[4]])?;
                f(cx, y, &d, &still(whole[3] * whole[4]))?
            };
            whole[2] = d.out()?;
            cx.reshape(y, &whole)
        }
        _ => Err(words(format!("{shape:?} has no spatial axis"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counting by edges is counting tap by tap.
    #[test]
    fn windows_hold_what_their_taps_touch() {
        for kernel in 1..5 {
            for (stride, dilation) in [(1, 1), (2, 1), (1, 2), (3, 2)] {
                for (before, after) in [(0, 0), (1, 2), (3, 0)] {
                    let a = Axis { size: 9, kernel, stride, dilation, before, after, extra: 0 };
                    for padded in [false, true] {
                        let (from, to) = match padded {
                            true => (0, before + 9 + after),
                            false => (before, before + 9),
                        };
                        let slow = (0..a.out().unwrap()).map(|o| {
                            let taps = (0..kernel).map(|k| o * stride + k * dilation);
                            taps.filter(|at| (from..to).contains(at)).count()
                        });
                        assert_eq!(a.counts(padded).unwrap(), slow.collect::<Vec<_>>(), "{a:?}");
                    }
                }
            }
        }
    }
}
