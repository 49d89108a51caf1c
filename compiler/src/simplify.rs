//! Removes what a graph does not need: repeats, identity movements, computations on literals, and
//! nodes nothing depends on. Exact: every value that remains is what it was, bit for bit.

use crate::diagnostic::{Diagnostic, Diagnostics, Place, Result};
use crate::ir::{ConstData, Graph, Node, Phase, Real, Result_, SEED, Shape, TensorType, ValueId};
use crate::ops::{Broadcast, Const, Lowering, Op, Reshape, Transpose};
use crate::reference;
use indexmap::IndexMap;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Literals larger than this many elements are not computed ahead: the plan would have to carry
/// the result.
const FOLD_LIMIT: usize = 4096;

/// Most elements of a result that is computed of no operands' elements when compiling.
const LARGEST_OF_NOTHING: usize = 1 << 22;

/// Simplifies a verified graph.
///
/// # Errors
/// Where evaluating a literal computation fails, such as an index outside a literal table.
pub fn simplify(g: &Graph) -> Result<Graph> {
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let mut s = Simplifier { out, known: FxHashMap::default() };
    let mut map: Vec<ValueId> = Vec::with_capacity(g.value_count());
    for (_, node) in g.nodes() {
        let inputs: SmallVec<[ValueId; 4]> =
            node.inputs.iter().map(|v| map[v.0 as usize]).collect();
        let types: Vec<TensorType> = node.outputs.iter().map(|&v| g.ty(v).clone()).collect();
        map.extend(s.node(node, &inputs, types)?);
    }
    let rename = |rs: &[Result_]| {
        rs.iter()
            .map(|r| Result_ { name: r.name.clone(), value: map[r.value.0 as usize] })
            .collect()
    };
    s.out.results = rename(&g.results);
    s.out.updates = rename(&g.updates);
    let out = s.out.without_dead_nodes();
    has_elements(&out)?;
    Ok(out)
}

/// Plans hold tensors of at least one element.
fn has_elements(g: &Graph) -> Result<()> {
    let fault = |name: &str, ty: &TensorType| {
        let text = format!("{ty} has no elements");
        Diagnostic::error("P0409", text).at(Place::Node { name: name.to_string() }).help(
            "what is computed of nothing and then read must have a place in the plan; give the axis \
             an extent of at least 1, or leave the operation out",
        )
    };
    let none = |ty: &TensorType| ty.shape.elements() == 0;
    let vars = g.vars.iter().filter(|(_, v)| none(&v.ty)).map(|(name, v)| fault(name, &v.ty));
    let nodes = g.nodes().filter_map(|(_, n)| {
        let v = n.outputs.iter().find(|v| none(g.ty(**v)))?;
        Some(fault(&n.name, g.ty(*v)))
    });
    let faults: Vec<Diagnostic> = vars.chain(nodes).collect();
    if faults.is_empty() { Ok(()) } else { Err(Diagnostics(faults)) }
}

/// What makes two nodes the same: operation, operands, and the phase, since a variable read in
/// another phase is another value.
type Key = (Op, SmallVec<[ValueId; 4]>, Phase, Vec<TensorType>);

struct Simplifier {
    out: Graph,
    /// Looked up only, never iterated.
    known: FxHashMap<Key, SmallVec<[ValueId; 2]>>,
}

impl Simplifier {
    fn node(
        &mut self,
        node: &Node,
        inputs: &[ValueId],
        types: Vec<TensorType>,
    ) -> Result<SmallVec<[ValueId; 2]>> {
        if node.name == SEED {
            return Ok(self.out.push(node.op.clone(), inputs, types, SEED.into(), node.region));
        }
        if let Some(outputs) = self.of_nothing(node, inputs, &types)? {
            return Ok(outputs);
        }
        let (op, inputs) = self.shortened(&node.op, inputs);
        let inputs = self.parts_with_elements(&op, inputs);
        if let Some(same) = self.identity(&op, &inputs, &types) {
            return Ok(SmallVec::from_slice(&[same]));
        }
        // A cast between formats stands where the precision pass put it, once or twice, and also
        // behind a literal.
        let placed = matches!(op, Op::Cast(_));
        let literal = if placed { None } else { self.folded(&op, &inputs, &types)? };
        let op = literal.unwrap_or(op);
        let inputs: SmallVec<[ValueId; 4]> =
            if matches!(op, Op::Const(_)) { SmallVec::new() } else { inputs };
        let key = (op.clone(), inputs.clone(), node.region.phase(), types.clone());
        if let Some(known) = self.known.get(&key).filter(|_| !placed) {
            return Ok(known.clone());
        }
        let outputs = self.out.push(op, &inputs, types, node.name.clone(), node.region);
        self.known.insert(key, outputs.clone());
        Ok(outputs)
    }

    /// Operands of a concatenation that have elements, where any has.
    fn parts_with_elements(
        &self,
        op: &Op,
        inputs: SmallVec<[ValueId; 4]>,
    ) -> SmallVec<[ValueId; 4]> {
        let some = |v: &&ValueId| self.out.shape(**v).elements() > 0;
        if !matches!(op, Op::Concat(_)) || inputs.iter().filter(some).count() == 0 {
            return inputs;
        }
        inputs.iter().filter(some).copied().collect()
    }

    /// The results of an operation all of whose operands lack elements: they are the same whatever
    /// the operands are, such as the sum of no numbers.
    fn of_nothing(
        &mut self,
        node: &Node,
        inputs: &[ValueId],
        types: &[TensorType],
    ) -> Result<Option<SmallVec<[ValueId; 2]>>> {
        let none = |v: &ValueId| self.out.shape(*v).elements() == 0;
        let some = types.iter().any(|t| t.shape.elements() > 0);
        let large = types.iter().any(|t| t.shape.elements() > LARGEST_OF_NOTHING);
        if inputs.is_empty() || !some || large || !inputs.iter().all(none) {
            return Ok(None);
        }
        let mut g = Graph::default();
        let region = crate::ir::Region::Forward;
        let operands: Vec<ValueId> = inputs
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let ty = self.out.ty(v).clone();
                let data = ConstData { dtype: ty.dtype, shape: ty.shape.clone(), bytes: [].into() };
                g.push(Const { data }.into(), &[], vec![ty], format!("x{i}"), region)[0]
            })
            .collect();
        let y = g.push(node.op.clone(), &operands, types.to_vec(), "folded".into(), region);
        let unread = IndexMap::new();
        let all = reference::eval_with(&g, &unread, &unread, &reference::Options::STORED)?;
        let mut outputs = SmallVec::new();
        for (i, (&v, ty)) in y.iter().zip(types).enumerate() {
            let name = match i {
                0 => node.name.clone(),
                i => format!("{}.{i}", node.name),
            };
            let data = all.value(v).to_const();
            if data.dtype != ty.dtype {
                return Ok(None);
            }
            // Of a large result, the number that it repeats.
            let literal = match data.splat() {
                Some(x) if ty.shape.elements() > 1 => {
                    let data = ConstData::from_f32(vec![1; ty.shape.rank()], &[x]);
                    let small = vec![data.ty()];
                    let name = format!("{name}.nothing");
                    let one = self.out.push(Const { data }.into(), &[], small, name, node.region);
                    let shape = ty.shape.to_vec();
                    (Op::from(Broadcast { shape }), SmallVec::from_slice(&one))
                }
                _ => (Const { data }.into(), SmallVec::<[ValueId; 2]>::new()),
            };
            let (op, from) = literal;
            outputs.push(self.out.push(op, &from, vec![ty.clone()], name, node.region)[0]);
        }
        Ok(Some(outputs))
    }

    /// A movement of a movement of the same kind as one.
    fn shortened(&self, op: &Op, inputs: &[ValueId]) -> (Op, SmallVec<[ValueId; 4]>) {
        let before = inputs.first().map(|&v| self.out.def(v));
        match (op, before.map(|n| (&n.op, n.inputs.first()))) {
            (Op::Reshape(_), Some((Op::Reshape(_), Some(&x)))) => {
                (op.clone(), SmallVec::from_slice(&[x]))
            }
            (Op::Transpose(b), Some((Op::Transpose(a), Some(&x)))) => {
                let perm = b.perm.iter().map(|&p| a.perm[p]).collect();
                (Transpose { perm }.into(), SmallVec::from_slice(&[x]))
            }
            _ => (op.clone(), SmallVec::from_slice(inputs)),
        }
    }

    /// The operand, where the operation does nothing to it.
    fn identity(&self, op: &Op, inputs: &[ValueId], types: &[TensorType]) -> Option<ValueId> {
        let &x = inputs.first()?;
        if *self.out.ty(x) != types[0] || types.len() != 1 {
            return None;
        }
        let same = match op {
            Op::Reshape(Reshape { .. }) | Op::Broadcast(_) | Op::Cast(_) => true,
            Op::Transpose(t) => t.perm.iter().enumerate().all(|(i, &p)| i == p),
            Op::Slice(s) => s.steps.iter().all(|&k| k == 1),
            Op::Scale(s) => s.by == Real(1.0),
            Op::Concat(_) => inputs.len() == 1,
            _ => false,
        };
        same.then_some(x)
    }

    /// A literal result of literal operands.
    fn folded(&self, op: &Op, inputs: &[ValueId], types: &[TensorType]) -> Result<Option<Op>> {
        let small = |t: &TensorType| t.shape.elements() <= FOLD_LIMIT;
        let literal = |v: &ValueId| {
            let node = self.out.def(*v);
            matches!(node.op, Op::Const(_)) && node.name != SEED
        };
        // A broadcast stays: it costs nothing to read, and a literal of its size would.
        if inputs.is_empty()
            || op.lowering() == Lowering::Leaf
            || matches!(op, Op::Broadcast(_))
            || types.len() != 1
            || !small(&types[0])
            || !inputs.iter().all(literal)
            || !inputs.iter().all(|v| small(self.out.ty(*v)))
        {
            return Ok(None);
        }
        let mut g = Graph::default();
        let region = crate::ir::Region::Forward;
        let mut operands = Vec::new();
        for &v in inputs {
            let node = self.out.def(v);
            let ty = vec![self.out.ty(v).clone()];
            operands.push(g.push(node.op.clone(), &[], ty, node.name.clone(), region)[0]);
        }
        let y = g.push(op.clone(), &operands, types.to_vec(), "folded".into(), region)[0];
        let none = IndexMap::new();
        let all = reference::eval_with(&g, &none, &none, &reference::Options::STORED)?;
        let data = all.value(y).to_const();
        debug_assert_eq!(data.shape, Shape::new(&types[0].shape));
        Ok((data.ty() == types[0]).then(|| Const { data }.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::simplify;

    fn check(text: &str) -> String {
        let g = crate::text::parse("test", text).expect("the test's text is right");
        let s = simplify(&g).expect("nothing to fail");
        crate::ir::verify::verify(&s).expect("the result verifies");
        crate::text::print(&s)
    }

    #[test]
    fn the_seed_of_the_backward_pass_stays() {
        let text = check(
            "graph g
var w: f32[] param value(2.0)
forward:
  %w = var {name=\"w\"} : f32[] @w
  %one = const {data=f32[](1.0)} : f32[] @one
  %y = binary %w, %one {f=mul} : f32[] @y
backward:
  %seed = const {data=f32[](1.0)} : f32[] @loss.seed
  %other = const {data=f32[](1.0)} : f32[] @other
  %a = scale %seed {by=0.5} : f32[] @a
  %b = scale %other {by=0.5} : f32[] @b
  %z = binary %a, %b {f=add} : f32[] @z
result loss = %y
result grad.w = %z
",
        );
        assert!(text.contains("const {data=f32[](1.0)} : f32[] @loss.seed"), "{text}");
        assert!(text.contains("scale") && !text.contains("@other"), "{text}");
    }

    #[test]
    fn repeats_identities_literals_and_dead_nodes_go() {
        insta::assert_snapshot!(check(
            "graph g
forward:
  %x = input {name=\"x\"} : f32[2,3] @x
  %a = transpose %x {perm=[1,0]} : f32[3,2] @a
  %b = transpose %a {perm=[1,0]} : f32[2,3] @b
  %c = reshape %b {shape=[2,3]} : f32[2,3] @c
  %d = unary %c {f=exp} : f32[2,3] @d
  %e = unary %x {f=exp} : f32[2,3] @e
  %f = binary %d, %e {f=add} : f32[2,3] @f
  %two = const {data=f32[]<00000040>} : f32[] @two
  %half = unary %two {f=recip} : f32[] @half
  %y = scale_by %half, %f : f32[2,3] @y
  %dead = unary %x {f=log} : f32[2,3] @dead
result out.y = %y
"
        ));
    }

    #[test]
    fn what_is_computed_of_nothing_is_a_number() {
        let whole = "graph g
forward:
  %x = input {name=\"x\"} : f32[2,3] @x
  %y = input {name=\"y\"} : f32[3,2] @y
  %e = slice %x {starts=[0,0], sizes=[2,0], steps=[1,1]} : f32[2,0] @e
  %f = slice %y {starts=[0,0], sizes=[0,2], steps=[1,1]} : f32[0,2] @f
  %c = concat %e, %x {axis=1} : f32[2,3] @c
  %s = reduce %e {f=sum, axes=[1]} : f32[2] @s
  %p = matmul %e, %f {fused=none} : f32[2,2] @p
  %z = pad %e {starts=[0,1], steps=[1,1], shape=[2,4]} : f32[2,4] @z
result out.c = %c
result out.s = %s
result out.p = %p
result out.z = %z
";
        let text = check(whole);
        assert!(!text.contains("f32[2,0]") && !text.contains("f32[0,2]"), "{text}");
        for op in ["slice", "concat", "reduce", "matmul", "pad"] {
            assert!(!text.contains(&format!("= {op} ")), "{text}");
        }
        let g = crate::text::parse("test", &text).expect("what was printed");
        let tensor = |shape: [usize; 2]| crate::reference::Tensor::real(shape, vec![1.0; 6]);
        let inputs = [("x", [2, 3]), ("y", [3, 2])];
        let inputs = inputs.map(|(name, shape)| (name.to_string(), tensor(shape))).into();
        let got = crate::reference::eval(&g, &inputs, &indexmap::IndexMap::new()).expect("runs");
        let of = |name: &str| got.results[name].reals().to_vec();
        let zeros = [("out.s", 2), ("out.p", 4), ("out.z", 8)];
        zeros.iter().for_each(|(name, n)| assert_eq!(of(name), vec![0.0; *n], "{name}"));
        assert_eq!(of("out.c"), vec![1.0; 6]);
    }

    #[test]
    fn a_result_without_elements_is_an_error() {
        let text = "graph g
forward:
  %x = input {name=\"x\"} : f32[2,3] @x
  %e = slice %x {starts=[0,0], sizes=[2,0], steps=[1,1]} : f32[2,0] @nothing
result out.e = %e
";
        let g = crate::text::parse("test", text).expect("the test's text is right");
        let e = simplify(&g).expect_err("there is nothing to store").to_string();
        assert!(e.contains("P0409") && e.contains("nothing") && e.contains("no elements"), "{e}");
    }
}
