//! Channels last: convolutions on tensor cores read and write [n,c,h,w] values with their channels
//! innermost in memory, and filters [o,c,kh,kw] likewise; given another order, a library transposes
//! every operand and every result of every convolution.
//!
//! A layout is not an operation of the graph. A value says how it is stored, everything that reads
//! or writes it follows by strides, and row programs do not care. What has an order that a person
//! knows keeps it: inputs, results, weights, optimizer state. Where the two meet, the elements change
//! places once: inside the row program that casts a batch or updates a weight, else in a copy.

use crate::ir::view::View;
use crate::ir::{Graph, Region, TensorType};
use crate::ops::{Lowering, Op};

/// The axes of [n,c,h,w] in the order of memory, and back.
pub const ORDER: [usize; 4] = [0, 2, 3, 1];
pub const BACK: [usize; 4] = [0, 3, 1, 2];

/// Whether a tensor lies in memory differently with its second axis innermost.
pub fn differs(shape: &[usize]) -> bool {
    matches!(shape, &[n, c, h, w] if n * c * h * w > 0 && c > 1 && h * w > 1)
}

/// Strides over [n,c,h,w] of what is stored as [n,h,w,c].
///
/// # Panics
/// Where there are not four axes.
pub fn strides(shape: &[usize]) -> Vec<i64> {
    let &[_, c, h, w] = shape else { panic!("{shape:?} has no planes") };
    let [c, h, w] = [c, h, w].map(|n| n as i64);
    vec![h * w * c, 1, w * c, c]
}

/// The extents of [n,c,h,w] in the order of memory.
pub fn stored(shape: &[usize]) -> Vec<usize> {
    ORDER.iter().map(|&d| shape[d]).collect()
}

/// Whether a view lies in memory with its channels innermost and without gaps.
pub fn is_last(view: &View) -> bool {
    view.shape.rank() == 4
        && strides(&view.shape)
            .iter()
            .zip(&view.strides)
            .zip(view.shape.iter())
            .all(|((want, have), &n)| n == 1 || want == have)
}

/// Whether an operation is a convolution of operands of at most `widest` bytes an element.
pub fn wants(op: &Op, operands: &[&TensorType], widest: usize) -> bool {
    matches!(op, Op::Conv2d(_) | Op::Conv2dDataGrad(_) | Op::Conv2dFilterGrad(_))
        && operands.iter().all(|t| t.dtype.size() <= widest)
}

/// For every value of a graph whether it is stored with its channels last: what such convolutions
/// write, what is computed for them to read, and what row programs, pools and concatenations make
/// of those.
pub fn choose(g: &Graph, widest: usize) -> Vec<bool> {
    let mut last = vec![false; g.value_count()];
    if widest == 0 {
        return last;
    }
    let mut read = vec![false; g.value_count()];
    let mut kept = vec![false; g.value_count()];
    for (_, node) in g.nodes() {
        let x: Vec<&TensorType> = node.inputs.iter().map(|&v| g.ty(v)).collect();
        if wants(&node.op, &x, widest) {
            node.inputs.iter().for_each(|v| read[v.0 as usize] = true);
        }
    }
    g.results.iter().chain(&g.updates).for_each(|r| kept[r.value.0 as usize] = true);
    for (_, node) in g.nodes().filter(|(_, n)| n.region != Region::Update) {
        let x: Vec<&TensorType> = node.inputs.iter().map(|&v| g.ty(v)).collect();
        let convolution = wants(&node.op, &x, widest);
        let follows = match node.op.lowering() {
            Lowering::Rows | Lowering::Assemble => true,
            Lowering::Kernel => matches!(node.op, Op::MaxPool2d(_) | Op::MaxPool2dGrad(_)),
            Lowering::Leaf | Lowering::View => false,
        };
        // A pool's operand has other extents than its result, a part of a whole as well.
        let rows = node.op.lowering() == Lowering::Rows;
        for &v in &node.outputs {
            let shape = g.shape(v);
            let same = |i: usize| !rows || x[i].shape == *shape;
            let operand = (0..x.len()).any(|i| last[node.inputs[i].0 as usize] && same(i));
            let soft = follows && !kept[v.0 as usize] && (operand || read[v.0 as usize]);
            last[v.0 as usize] = differs(shape) && (convolution || soft);
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_with_channels_last_are_known() {
        let dense = View::dense(&[2usize, 3, 4, 5].into());
        assert!(!is_last(&dense));
        assert!(is_last(&View::dense(&[2usize, 4, 5, 3].into()).transpose(&BACK)));
        // Both orders are one where there is one channel, or one pixel.
        assert!(is_last(&View::dense(&[2usize, 1, 4, 5].into())));
        assert!(is_last(&View::dense(&[2usize, 3, 1, 1].into())));
        assert!(!differs(&[2, 3, 1, 1]) && !differs(&[2, 1, 4, 5]) && !differs(&[2, 3, 4]));
        assert_eq!(stored(&[2, 3, 4, 5]), [2, 4, 5, 3]);
    }

    #[test]
    fn what_lies_between_convolutions_follows_and_what_a_person_sees_does_not() {
        let text = "graph g
forward:
  %x = input {name=\"x\"} : f32[2,3,8,8] @x
  %w = input {name=\"w\"} : f32[4,3,3,3] @w
  %v = input {name=\"v\"} : f32[4,4,3,3] @v
  %xh = cast %x : bf16[2,3,8,8] @x.cast
  %wh = cast %w : bf16[4,3,3,3] @w.cast
  %y = conv2d %xh, %wh {stride=[1,1], pad=[1,1,1,1], dilation=[1,1], groups=1} : bf16[2,4,8,8] @y
  %r = activate %y {act=relu} : bf16[2,4,8,8] @r
  %p, %i = max_pool2d %r {kernel=[2,2], stride=[2,2], pad=[0,0,0,0]} : bf16[2,4,4,4], u8[2,4,4,4] @p
  %s = cast %p : f32[2,4,4,4] @s
  %z = conv2d %s, %v {stride=[1,1], pad=[1,1,1,1], dilation=[1,1], groups=1} : f32[2,4,4,4] @z
result out.r = %r
result out.z = %z
";
        let g = crate::text::parse("test", text).unwrap_or_else(|e| panic!("{e}"));
        let names = |widest: usize| -> Vec<&str> {
            let last = choose(&g, widest);
            let of = |v: &crate::ir::ValueId| last[v.0 as usize];
            g.nodes().filter(|(_, n)| n.outputs.iter().any(of)).map(|(_, n)| &n.name[..]).collect()
        };
        assert_eq!(names(0), Vec::<&str>::new());
        // `r` is a result and keeps its order, so the pool has nothing to follow.
        assert_eq!(names(2), ["x.cast", "w.cast", "y"]);
        assert_eq!(names(4), ["x.cast", "w.cast", "y", "s", "z"]);
    }
}
