//! The sums of a product's operand over the axis that the product sums over, in the product's own
//! kernel: a bias gradient beside its weight gradient. The operand is read once less, and a kernel
//! is not started.
//!
//! It comes after fusion, and after formats are chosen, since only there is it known whether the sums
//! are a kernel of their own. What an elementwise program that writes the operand sums on its way costs
//! nothing and stays there.

use super::affine::Access;
use super::deps;
use super::fuse::{Group, adds_to_variable, over_product};
use super::items::{Body, Items};
use super::program::{Built, build};
use crate::ir::Shape;
use crate::ir::reach::Forest;
use crate::ir::view::View;
use crate::ops::{MatMul, Op, matmul};
use precast_plan::{DType, Instr, ReduceOp};
use rustc_hash::FxHashMap;

/// Which operand of a product is summed, and where the sums go.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    /// The item that the product does as well.
    pub item: usize,
    /// 0: `Σ_k a[m,k]`; 1: `Σ_k b[k,n]`.
    pub operand: usize,
    /// Along m, or along n.
    pub out: Access,
}

/// Gives plain products the sums of their operands.
pub fn join(items: &Items, groups: &mut Vec<(Group, Option<Built>)>) {
    let next = deps::successors(items);
    let forest = Forest::new(&next);
    let reach = forest.reach(&next);
    let mut taken = vec![false; groups.len()];
    // By value: groups with a product of it, in order.
    let mut products: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    for (p, (group, _)) in groups.iter().enumerate() {
        let Some(product) = group.product else { continue };
        if let Body::Product { operands, .. } = &items.items[product].body {
            operands.iter().for_each(|o| products.entry(o.0).or_default().push(p));
        }
    }
    for s in 0..groups.len() {
        let split = apart(items, &groups[s].0);
        let Some(found) = sums(split.as_ref().map_or(&groups[s], |(of_operand, _)| of_operand))
        else {
            continue;
        };
        let item = split.as_ref().map_or(&groups[s].0, |(of_operand, _)| &of_operand.0).items[0];
        let of = products.get(&found.from).into_iter().flatten();
        let product = of.copied().find_map(|p| {
            let (group, built) = &groups[p];
            let product = group.product.filter(|_| group.sums.is_none())?;
            let built = built.as_ref().filter(|_| group.phase == groups[s].0.phase)?;
            let sums = of_product(items, group, product, built, &found)?;
            let later = |&i: &usize| reach.holds(item, forest.place(i));
            (!group.items.iter().any(later)).then_some((p, sums))
        });
        if let Some((p, (operand, out))) = product {
            groups[p].0.sums = Some(Sums { item, operand, out });
            match split {
                Some((_, rest)) => groups[s] = rest,
                None => taken[s] = true,
            }
        }
    }
    let mut at = 0;
    groups.retain(|_| {
        at += 1;
        !taken[at - 1]
    });
}

type Fused = (Group, Option<Built>);

/// Sums that are added to a variable, as two groups: the product can store the sums, and then what
/// adds them reads no operand.
fn apart(items: &Items, group: &Group) -> Option<(Fused, Fused)> {
    let &[sums, adds] = &group.items[..] else { return None };
    let added = group.product.is_none() && adds_to_variable(items, adds);
    let alone = |i: usize| -> Option<Fused> {
        let group = Group::of(items, i);
        let built = build(items, &group, |_| true).ok()?;
        Some((group, Some(built)))
    };
    added.then_some(())?;
    Some((alone(sums)?, alone(adds)?))
}

/// What a group reads and writes that only sums: kept and reduced axes as (extent, stride), outermost
/// first.
struct Found {
    from: usize,
    offset: i64,
    dtype: (DType, DType),
    kept: View,
    reduced: View,
    out: Access,
    out_kept: View,
}

fn sums((group, built): &(Group, Option<Built>)) -> Option<Found> {
    let built = built.as_ref()?;
    let p = &built.program;
    let only = p.code[..] == [Instr::Load { port: 0 }, Instr::Reduce(ReduceOp::Sum, 0)];
    let ([x], [y]) = (&built.inputs[..], &built.outputs[..]) else { return None };
    if !only || group.items.len() != 1 || group.product.is_some() || p.outputs[0].reg != 1 {
        return None;
    }
    let kept = group.dims.len() - group.reduced;
    let view = |strides: &[i64], range: std::ops::Range<usize>| {
        let axes: Vec<usize> = range.filter(|&d| group.dims[d] > 1).collect();
        View {
            shape: axes.iter().map(|&d| group.dims[d]).collect(),
            offset: 0,
            strides: axes.iter().map(|&d| strides[d]).collect(),
        }
    };
    let mut reduced = view(&x.strides, kept..group.dims.len());
    // A sum has no order.
    let mut order: Vec<usize> = (0..reduced.shape.rank()).collect();
    order.sort_by_key(|&d| std::cmp::Reverse(reduced.strides[d]));
    reduced = reduced.transpose(&order);
    Some(Found {
        from: x.value,
        offset: x.offset,
        dtype: (p.inputs[0].dtype, p.outputs[0].dtype),
        kept: view(&x.strides, 0..kept),
        reduced,
        out: y.clone(),
        out_kept: view(&y.strides, 0..kept),
    })
}

/// The operand of a product that these are the sums of, and its sums over one axis.
fn of_product(
    items: &Items,
    group: &Group,
    product: usize,
    built: &Built,
    s: &Found,
) -> Option<(usize, Access)> {
    let item = &items.items[product];
    let Body::Product {
        op: Op::MatMul(MatMul { fused: matmul::Fused::None, scaled: false, .. }),
        operands,
    } = &item.body
    else {
        return None;
    };
    // The library sums beside a product that it only stores, or adds to what stands there, into the result's format: gradients of
    // parameters are f32.
    let adds = |&i: &usize| i == product || adds_to_variable(items, i);
    let stores = match group.items.len() {
        1 => built.program.code[..] == [Instr::Load { port: 0 }],
        2 => group.items.iter().all(adds),
        _ => false,
    } && built.outputs.len() == 1;
    let result = built.program.outputs.first()?.dtype;
    let one = item.dims[..item.dims.len() - 2].iter().all(|&n| n == 1);
    if !stores || !one || [s.dtype.1, result] != [DType::F32; 2] {
        return None;
    }
    over_product(&group.dims, &built.outputs[0], &item.dims)?;
    let along = |view: &View, n: usize| Some(view.reshape(&Shape::new(&[n]))?.strides[0]);
    let step = |n: usize, stride: i64| if n == 1 { 0 } else { stride };
    (0..2).find_map(|operand| {
        let (value, view) = &operands[operand];
        let rank = view.shape.rank();
        // Axes of the vector and of the sum.
        let (v, k) = if operand == 0 { (rank - 2, rank - 1) } else { (rank - 1, rank - 2) };
        let (n, depth) = (view.shape[v], view.shape[k]);
        let same = *value == s.from
            && view.offset == s.offset
            && items.values[*value].dtype == s.dtype.0
            && s.kept.shape.elements() == n
            && s.reduced.shape.elements() == depth
            && step(n, along(&s.kept, n)?) == step(n, view.strides[v])
            && step(depth, along(&s.reduced, depth)?) == step(depth, view.strides[k]);
        let strides = vec![step(n, along(&s.out_kept, n)?)];
        same.then(|| (operand, Access { strides, ..s.out.clone() }))
    })
}
