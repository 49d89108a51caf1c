//! Finite numbers that a format rounds to infinity: what masks write where nothing counts (−1e9, the
//! most negative f32). As long as they are finite, a row of nothing else is uniform; infinite ones make
//! NaN of it. What is chosen from them, or has them added, holds them too.

use super::legal::Why;
use crate::ir::{Graph, Region, ValueId};
use crate::ops::range::{Bounds, Ranges};
use crate::ops::{Linear, NumericClass, Op};
use precast_plan::DType;

/// By value: why it is in f32, stored and read, since it may hold a constant that `half` rounds to
/// infinity.
pub fn needs(g: &Graph, half: DType) -> Vec<Option<Why>> {
    let known = Ranges::of(g, half.facts().max / super::ranges::HEADROOM);
    let lost = |x: f64| x.is_finite() && !half.round(x as f32).is_finite();
    let bounds = |v: ValueId| known.bounds[v.0 as usize];
    let most = |v: ValueId| bounds(v).abs().hi;
    let mut out: Vec<Option<Why>> = vec![None; g.value_count()];
    for (_, node) in g.nodes().filter(|(_, n)| n.region != Region::Update) {
        let y = node.outputs[0];
        if !g.ty(y).is_real() {
            continue;
        }
        let class = node.op.class();
        let own = match &node.op {
            Op::Const(c) => c.data.f32s().and_then(|x| x.into_iter().find(|&x| lost(x.into()))),
            // A factor that the operation itself has, of a mask of zeros and ones.
            _ if class == NumericClass::Pointwise
                && lost(most(y))
                && node.inputs.iter().all(|&x| most(x) <= half.facts().max) =>
            {
                Some(extreme(bounds(y)) as f32)
            }
            _ => None,
        };
        let passes = matches!(class, NumericClass::Movement | NumericClass::Pointwise)
            || node.op.def().linear() == Linear::All;
        let why = match own {
            Some(x) => {
                Some(format!("`{}` holds {x:e}, which is infinite in {half}", node.name).into())
            }
            // What lies within the format's range holds it no longer.
            None if !passes || most(y) <= half.facts().max => None,
            None => node.inputs.iter().find_map(|x| out[x.0 as usize].clone()),
        };
        if let Some(why) = why {
            node.outputs.iter().for_each(|v| out[v.0 as usize] = Some(why.clone()));
        }
    }
    out
}

/// The end that is farther from 0.
fn extreme(b: Bounds) -> f64 {
    if b.hi.abs() > b.lo.abs() { b.hi } else { b.lo }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(fill: &str, half: DType) -> Vec<String> {
        let g = crate::text::parse(
            "test",
            &format!(
                "graph g
forward:
  %s = input {{name=\"s\"}} : f32[2,3] @s
  %k = input {{name=\"k\"}} : bool[2,3] @k
  %c = const {{data=f32[1,1]({fill})}} : f32[1,1] @fill
  %b = broadcast %c {{shape=[2,3]}} : f32[2,3] @all
  %w = select %k, %s, %b : f32[2,3] @where
  %m = unary %k {{f=to_real}} : f32[2,3] @mask
  %f = scale %m {{by={fill}}} : f32[2,3] @factor
  %a = binary %w, %f {{f=add}} : f32[2,3] @sum
  %p = softmax %a {{log=false}} : f32[2,3] @p
result out.p = %p
"
            ),
        )
        .unwrap_or_else(|e| panic!("{e:?}"));
        let needs = needs(&g, half);
        let named = g.nodes().filter(|(_, n)| needs[n.outputs[0].0 as usize].is_some());
        named.map(|(_, n)| n.name.clone()).collect()
    }

    #[test]
    fn what_may_hold_a_masks_number_is_wide_up_to_the_softmax() {
        let all = ["fill", "all", "where", "factor", "sum"];
        assert_eq!(marked("-3.4028235e38", DType::Bf16), all);
        assert_eq!(marked("-1e9", DType::F16), all);
        assert_eq!(marked("-1e9", DType::Bf16), [""; 0]);
        assert_eq!(marked("-1e4", DType::F16), [""; 0]);
    }
}
