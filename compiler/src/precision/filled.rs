//! Large numbers of the graph's own: what masks write where nothing counts (−1e4, −1e9, the most
//! negative f32).
//!
//! Where a format rounds one to infinity, a row of nothing else becomes NaN instead of uniform. Where it
//! merely rounds it, by 16 at −1e4 in bf16, two masks that are added differ from one by more than any
//! score: in a row that both hide, one part of the keys would count. So a value that depends on no
//! parameter is f32 where its numbers are beyond the integers that the format holds, and so is what they
//! are added to or chosen beside, as far as arithmetic and movement carry them, and what else a mask is
//! made of.

use super::legal::Why;
use crate::ir::{Graph, Node, Region, ValueId, VarRole};
use crate::ops::range::{Bounds, Ranges};
use crate::ops::{Linear, NumericClass, Op, Unary};
use precast_plan::{BinaryOp, DType, Kind, UnaryOp};
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// By value: why it is stored in f32, and why not even a copy is narrower.
pub struct Needs {
    pub store: Vec<Option<Why>>,
    pub copy: Vec<Option<Why>>,
}

/// What `half` does not hold of a graph's own numbers.
pub fn needs(g: &Graph, half: DType) -> Needs {
    let known = Ranges::of(g, half.facts().max / super::ranges::HEADROOM);
    let copy = infinite(g, half, &known);
    let mut f = Finder::new(g, half, known, &copy);
    let forward = || g.nodes().filter(|(_, n)| n.region != Region::Update);
    forward().for_each(|(_, n)| f.carried(n));
    forward().for_each(|(_, n)| f.compared(n));
    forward().rev().for_each(|(_, n)| f.parts(n));
    Needs { store: f.wide, copy }
}

fn passes(op: &Op) -> bool {
    matches!(op.class(), NumericClass::Movement | NumericClass::Pointwise)
        || op.def().linear() == Linear::All
}

/// By value: why it may hold a finite constant that `half` rounds to infinity.
fn infinite(g: &Graph, half: DType, known: &Ranges) -> Vec<Option<Why>> {
    let lost = |x: f64| x.is_finite() && !half.round(x as f32).is_finite();
    let bounds = |v: ValueId| known.bounds[v.0 as usize];
    let most = |v: ValueId| bounds(v).abs().hi;
    let mut out: Vec<Option<Why>> = vec![None; g.value_count()];
    for (_, node) in g.nodes().filter(|(_, n)| n.region != Region::Update) {
        let y = node.outputs[0];
        if !g.ty(y).is_real() {
            continue;
        }
        let own = match &node.op {
            Op::Const(c) => c.data.f32s().and_then(|x| x.into_iter().find(|&x| lost(x.into()))),
            // A factor that the operation itself has, of a mask of zeros and ones.
            _ if node.op.class() == NumericClass::Pointwise
                && lost(most(y))
                && node.inputs.iter().all(|&x| most(x) <= half.facts().max) =>
            {
                Some(extreme(bounds(y)) as f32)
            }
            _ => None,
        };
        let why = match own {
            Some(x) => {
                Some(format!("`{}` holds {x:e}, which is infinite in {half}", node.name).into())
            }
            // What lies within the format's range holds it no longer.
            None if !passes(&node.op) || most(y) <= half.facts().max => None,
            None => node.inputs.iter().find_map(|x| out[x.0 as usize].clone()),
        };
        if let Some(why) = why {
            node.outputs.iter().for_each(|v| out[v.0 as usize] = Some(why.clone()));
        }
    }
    out
}

struct Finder<'a> {
    g: &'a Graph,
    half: DType,
    known: Ranges,
    /// Variables that a step changes.
    written: BTreeSet<&'a str>,
    /// The integers up to this are all in the format.
    whole: f64,
    /// By value: depends on no parameter, but for conditions.
    free: Vec<bool>,
    /// By value: holds integers alone, all of which the format has.
    exact: Vec<bool>,
    /// By value: why it is stored in f32.
    wide: Vec<Option<Why>>,
}

impl Finder<'_> {
    fn new<'a>(g: &'a Graph, half: DType, known: Ranges, infinite: &[Option<Why>]) -> Finder<'a> {
        let n = g.value_count();
        let whole = f64::from(half.facts().mantissa_bits + 1).exp2();
        let written = g.updates.iter().map(|u| u.name.as_str()).collect();
        let (free, exact) = (vec![false; n], vec![false; n]);
        Finder { g, half, known, written, whole, free, exact, wide: infinite.to_vec() }
    }

    fn at<T: Clone>(list: &[T], v: ValueId) -> T {
        list[v.0 as usize].clone()
    }

    fn most(&self, v: ValueId) -> f64 {
        self.known.bounds[v.0 as usize].abs().hi
    }

    fn reals(&self, node: &Node) -> SmallVec<[ValueId; 4]> {
        node.inputs.iter().copied().filter(|&v| self.g.ty(v).is_real()).collect()
    }

    fn is_free(&self, node: &Node) -> bool {
        match &node.op {
            // Running statistics are made of activations.
            Op::Var(v) => {
                let buffer = self.g.vars[&v.name].role == VarRole::Buffer;
                buffer && !self.written.contains(v.name.as_str())
            }
            _ => self.reals(node).into_iter().all(|v| Finder::at(&self.free, v)),
        }
    }

    fn is_exact(&self, node: &Node) -> bool {
        let all = || self.reals(node).into_iter().all(|v| Finder::at(&self.exact, v));
        let within = || self.most(node.outputs[0]) <= self.whole;
        match &node.op {
            Op::Const(c) => {
                let held = |x: &f32| x.fract() == 0.0 && f64::from(x.abs()) <= self.whole;
                c.data.f32s().is_some_and(|x| x.iter().all(|x| held(x) || x.is_infinite()))
            }
            Op::Unary(Unary { f: UnaryOp::ToReal }) => within(),
            Op::Binary(b) if b.f == BinaryOp::Mul => all() && within(),
            op if op.class() == NumericClass::Movement => all(),
            op if op.class() == NumericClass::Pointwise && op.def().linear() == Linear::All => {
                let factor = matches!(op, Op::Scale(s) if s.by.0.fract() != 0.0);
                !factor && all() && within()
            }
            _ => false,
        }
    }

    /// The number of its own, or made of its own, that a value reaches beyond what the format holds.
    fn own(&self, node: &Node) -> Option<Why> {
        let y = node.outputs[0];
        let beyond = |x: f64| x.is_finite() && x.abs() > self.whole;
        let x = match &node.op {
            Op::Const(c) => {
                let far = c.data.f32s()?.into_iter().map(f64::from).filter(|&x| beyond(x));
                far.max_by(|a, b| a.abs().total_cmp(&b.abs()))?
            }
            // Of what is not known, at least of ones.
            Op::Scale(s) if beyond(s.by.0) && !self.most(y).is_finite() => s.by.0,
            Op::Unary(Unary { f: UnaryOp::ToReal }) => {
                return (self.g.ty(node.inputs[0]).kind() == Kind::Int).then(|| {
                    let (half, most) = (self.half, self.whole);
                    format!("`{}` holds integers, of which {half} has those to {most}", node.name)
                        .into()
                });
            }
            _ if beyond(self.most(y)) => extreme(self.known.bounds[y.0 as usize]),
            _ => return None,
        };
        let bits = i32::try_from(self.half.facts().mantissa_bits).expect("a few");
        let step = f64::from(x.abs().log2().floor() as i32 - bits).exp2();
        let (x, half) = (x as f32, self.half);
        let why =
            format!("`{}` reaches {x:e}, where {half} has only multiples of {step}", node.name);
        Some(why.into())
    }

    /// What has such numbers, and what they are carried to.
    fn carried(&mut self, node: &Node) {
        let free = self.is_free(node);
        node.outputs.iter().for_each(|v| self.free[v.0 as usize] = free);
        let y = node.outputs[0];
        if !self.g.ty(y).is_real() {
            return;
        }
        let exact = free && self.is_exact(node);
        node.outputs.iter().for_each(|v| self.exact[v.0 as usize] = exact);
        if self.wide[y.0 as usize].is_some() {
            return;
        }
        let own = if free { self.own(node) } else { None };
        let why = own.or_else(|| {
            if !passes(&node.op) || self.most(y) <= self.whole {
                return None;
            }
            // A factor is not part of what it multiplies.
            let part = |v: &ValueId| free || adds(&node.op) || !Finder::at(&self.free, *v);
            self.reals(node).into_iter().filter(part).find_map(|v| Finder::at(&self.wide, v))
        });
        if let Some(why) = why {
            node.outputs.iter().for_each(|v| self.wide[v.0 as usize] = Some(why.clone()));
        }
    }

    /// What is added to, or chosen beside, numbers of which only the differences count: a mask, be it
    /// data or not.
    fn compared(&mut self, node: &Node) {
        for &(i, why) in node.op.def().reads_f32() {
            if let Some(&v) = node.inputs.get(i) {
                self.mask(v, why.into());
            }
        }
        let (mut seen, mut work) = (BTreeSet::new(), vec![]);
        work.extend(node.op.def().compares().iter().map(|&i| node.inputs[i]));
        while let Some(v) = work.pop() {
            let n = self.g.def(v);
            let adds = passes(&n.op) && n.op.def().linear() == Linear::All;
            if !adds || Finder::at(&self.free, v) || !seen.insert(v) {
                continue;
            }
            for x in self.reals(n) {
                self.mask(x, format!("it is part of a mask of `{}`", node.name).into());
                work.push(x);
            }
        }
    }

    fn mask(&mut self, v: ValueId, why: Why) {
        let (free, exact) = (Finder::at(&self.free, v), Finder::at(&self.exact, v));
        if self.g.ty(v).is_real() && free && !exact {
            self.wide[v.0 as usize].get_or_insert(why);
        }
    }

    /// What a mask is made of.
    fn parts(&mut self, node: &Node) {
        let y = node.outputs[0];
        let Some(why) = Finder::at(&self.wide, y) else { return };
        if passes(&node.op) && (Finder::at(&self.free, y) || adds(&node.op)) {
            self.reals(node).into_iter().for_each(|v| self.mask(v, why.clone()));
        }
    }
}

/// Whether elements of the result are made of elements of every operand other than by a factor.
fn adds(op: &Op) -> bool {
    op.class() == NumericClass::Movement || op.def().linear() == Linear::All
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
        let needs = needs(&g, half).copy;
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

    /// Two masks that are added: causality, a literal in a variable's place, and padding, whose number is
    /// a factor of integers; a third that is data. Beside them a bias that is learned.
    const TWO: &str = "graph g
var b: f32[2,3] param weights(\"b\")
var c: f32[2,3] buffer weights(\"c\")
forward:
  %x = input {name=\"x\"} : f32[2,3] @x
  %m = input {name=\"m\"} : f32[2,3] @m
  %k = input {name=\"k\"} : i32[2,3] @k
  %h = input {name=\"h\"} : bool[2,3] @h
  %b = var {name=\"b\"} : f32[2,3] @learned
  %c = var {name=\"c\"} : f32[2,3] @buffer
  %s = binary %x, %b {f=mul} : f32[2,3] @scores
  %r = unary %k {f=to_real} : f32[2,3] @real
  %p = scale %r {by=-10000} : f32[2,3] @padding
  %t = const {data=f32[2,3](0,-5000,-5000,0,0,-5000)} : f32[2,3] @future
  %u = binary %t, %p {f=add} : f32[2,3] @both
  %z = unary %h {f=to_real} : f32[2,3] @zeros_and_ones
  %v = binary %u, %z {f=add} : f32[2,3] @with_exact
  %w = binary %v, %m {f=add} : f32[2,3] @with_data
  %y = binary %s, %w {f=add} : f32[2,3] @masked
  %l = binary %s, %c {f=add} : f32[2,3] @other_scores
  %q = softmax %l {log=false} : f32[2,3] @q
  %o = softmax %y {log=false} : f32[2,3] @o
result out.o = %o
result out.q = %q
";

    #[test]
    fn what_masks_are_made_of_is_wide_and_no_more() {
        let g = crate::text::parse("test", TWO).unwrap_or_else(|e| panic!("{e:?}"));
        for half in [DType::Bf16, DType::F16] {
            let needs = needs(&g, half);
            assert!(needs.copy.iter().all(Option::is_none), "a product may read copies");
            let why = |v: ValueId| needs.store[v.0 as usize].clone();
            let all = g.nodes().filter_map(|(_, n)| Some((n.name.clone(), why(n.outputs[0])?)));
            let (names, reasons): (Vec<String>, Vec<Why>) = all.unzip();
            let made = ["real", "padding", "future", "both", "with_exact", "with_data", "masked"];
            assert_eq!(names, [&["m", "buffer"][..], &made[..]].concat(), "{half}");
            let (step, whole) = if half == DType::Bf16 { (64, 256) } else { (8, 2048) };
            let want = format!("`padding` reaches -1e4, where {half} has only multiples of {step}");
            assert_eq!(reasons[3], want);
            let want = format!("`real` holds integers, of which {half} has those to {whole}");
            assert_eq!(reasons[2], want);
            assert_eq!(reasons[1], "it is part of a mask of `q`");
        }
    }
}
