//! From the graph to items: values with dense storage, and the smallest pieces of work on them.
//! Views disappear into the accesses of their readers.

mod parts;

use super::affine::{Access, Placement};
use super::links::Links;
use super::{channels, kernels};
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::ir::view::View;
use crate::ir::{ConstData, Graph, Node, Phase, Shape, TensorType, ValueId};
use crate::ops::{Lowering, Op, Part};
use precast_plan::{DType, Instr, Kind};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, VecDeque};

mod results;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Computed by the items that write it.
    Computed,
    Input(String),
    /// The old value of a variable.
    Var(String),
    Const(ConstData),
}

/// A dense tensor, row-major in the order of its axes or of [`channels`].
#[derive(Clone, Debug)]
pub struct Value {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub source: Source,
    /// The variable whose new value this is, where it is written in place of the old one.
    pub updates: Option<String>,
    /// Stored as a part of another value.
    pub placed: Option<(usize, Placement)>,
    /// The graph's value that this is; `None` for what the schedule made.
    pub of: Option<ValueId>,
    /// [n,c,h,w], stored as [n,h,w,c].
    pub channels_last: bool,
}

impl Value {
    /// Extents in the order of memory.
    pub fn stored(&self) -> Vec<usize> {
        if self.channels_last { channels::stored(&self.shape) } else { self.shape.clone() }
    }

    /// The whole value.
    pub fn view(&self) -> View {
        let shape = Shape::new(&self.shape);
        let strides = if self.channels_last { channels::strides(&shape) } else { shape.strides() };
        View { shape, offset: 0, strides }
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

/// An operand of a row program.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    At(Access),
    Literal(Instr),
}

/// What an item computes.
#[derive(Clone, Debug)]
pub enum Body {
    /// A row program; its operation emits the instructions.
    Rows(Op),
    /// Element for element.
    Copy,
    /// A product or convolution over `operands`, into an accumulator that the operation's own
    /// epilogue and fused items finish. The space is that of the result.
    Product { op: Op, operands: Vec<(usize, View)> },
    /// A kernel that does not fuse.
    Kernel { op: Op, operands: Vec<(usize, View)> },
}

/// One piece of work.
#[derive(Clone, Debug)]
pub struct Item {
    pub name: String,
    /// Name of the operation of the graph, if the item is one.
    pub op: Option<String>,
    pub phase: Phase,
    pub dims: Vec<usize>,
    pub reduced: usize,
    pub reads: Vec<Read>,
    /// One per result of the body.
    pub writes: Vec<Access>,
    pub body: Body,
    /// A number that stays while items are reordered.
    pub origin: usize,
    /// The item that this one computes again, by [`Item::origin`]; the two are never fused.
    pub clone_of: Option<usize>,
}

impl Item {
    /// Values read, with repetitions.
    pub fn read_values(&self) -> impl Iterator<Item = usize> + '_ {
        let operands: &[(usize, View)] = match &self.body {
            Body::Product { operands, .. } | Body::Kernel { operands, .. } => operands,
            _ => &[],
        };
        let reads = self.reads.iter().filter_map(|r| match r {
            Read::At(a) => Some(a.value),
            Read::Literal(_) => None,
        });
        reads.chain(operands.iter().map(|o| o.0))
    }

    /// Whether anything can be fused with it.
    pub fn fuses(&self) -> bool {
        !matches!(self.body, Body::Kernel { .. })
    }
}

/// A lowered graph.
#[derive(Debug, Default)]
pub struct Items {
    pub values: Vec<Value>,
    pub items: Vec<Item>,
    /// Name and value of every result; the value is stored with the result's own shape.
    pub results: Vec<(String, usize)>,
}

impl Items {
    /// The access as one to the tensor that stores the value, where strides can say it.
    pub fn physical(&self, a: &Access, dims: &[usize]) -> Option<Access> {
        let mut a = a.clone();
        while let Some((outer, placement)) = &self.values[a.value].placed {
            let (offset, strides) = placement.convert(dims, a.offset, &a.strides)?;
            a = Access { value: *outer, offset, strides };
        }
        Some(a)
    }

    /// The value whose tensor stores this one.
    pub fn storage(&self, mut value: usize) -> usize {
        while let Some((outer, _)) = &self.values[value].placed {
            value = *outer;
        }
        value
    }
}

/// Parts of a value that is put together.
struct Assembly {
    ty: TensorType,
    parts: VecDeque<(ValueId, Part)>,
    node: crate::ir::NodeId,
    slabs: Option<parts::Slabs>,
}

struct Lower<'g> {
    g: &'g Graph,
    out: Items,
    loc: Vec<Option<(usize, View)>>,
    pending: BTreeMap<ValueId, Assembly>,
    uses: Vec<usize>,
    links: Links,
    /// Values that are results.
    named: FxHashSet<usize>,
    /// Bytes of an element up to which convolutions want channels last, and the values that are
    /// stored so.
    widest: usize,
    last: Vec<bool>,
    /// Copies that were made for operands, by what they are copies of.
    ordered: FxHashMap<(Phase, usize, View), (usize, View)>,
}

/// Lowers a verified graph without dead nodes; `widest` is [`super::Capabilities::channels_last`].
pub fn lower(g: &Graph, widest: usize) -> Result<Items> {
    let mut uses: Vec<usize> = g.uses().iter().map(Vec::len).collect();
    for r in g.results.iter().chain(&g.updates) {
        uses[r.value.0 as usize] += 1;
    }
    let mut l = Lower {
        g,
        out: Items::default(),
        loc: vec![None; g.value_count()],
        pending: BTreeMap::new(),
        uses,
        links: Links::default(),
        named: FxHashSet::default(),
        widest,
        last: channels::choose(g, widest),
        ordered: FxHashMap::default(),
    };
    for (id, node) in g.nodes() {
        l.node(id, node)?;
    }
    l.results()?;
    Ok(l.out)
}

fn fault(node: &str, message: String) -> Diagnostic {
    Diagnostic::error("P0402", message).at(Place::Node { name: node.to_string() })
}

/// Strides over the axes of a space of a view whose axis `i` runs along space axis `map[i]`.
fn spread(view: &View, map: &[usize], rank: usize) -> Vec<i64> {
    let mut out = vec![0; rank];
    for (&axis, &s) in map.iter().zip(&view.strides) {
        out[axis] += s;
    }
    out
}

impl Lower<'_> {
    fn value(&mut self, name: String, ty: &TensorType, source: Source) -> usize {
        self.out.values.push(Value {
            name,
            dtype: ty.dtype,
            shape: ty.shape.to_vec(),
            source,
            updates: None,
            placed: None,
            of: None,
            channels_last: false,
        });
        self.out.values.len() - 1
    }

    /// [`Lower::value`], of a value of the graph; views of it are found through `loc`.
    fn value_of(&mut self, name: String, v: ValueId, source: Source) -> usize {
        let ty = self.g.ty(v).clone();
        let id = self.value(name, &ty, source);
        self.out.values[id].of = Some(v);
        self.out.values[id].channels_last = self.last[v.0 as usize];
        self.loc[v.0 as usize] = Some((id, self.out.values[id].view()));
        id
    }

    /// New dense values for all results of a node.
    fn results_of(&mut self, node: &Node) -> Vec<usize> {
        let many = node.outputs.len() > 1;
        node.outputs
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let name = if many { format!("{}.{i}", node.name) } else { node.name.clone() };
                self.value_of(name, v, Source::Computed)
            })
            .collect()
    }

    fn node(&mut self, id: crate::ir::NodeId, node: &Node) -> Result<()> {
        let g = self.g;
        match node.op.lowering() {
            Lowering::Leaf => {
                let v = node.outputs[0];
                let (name, source) = match &node.op {
                    Op::Input(i) => (i.name.clone(), Source::Input(i.name.clone())),
                    Op::Var(var) => (var.name.clone(), Source::Var(var.name.clone())),
                    Op::Const(c) => (node.name.clone(), Source::Const(c.data.clone())),
                    op => panic!("`{}` is not a leaf", op.name()),
                };
                self.value_of(name, v, source);
            }
            Lowering::View => {
                let v = node.outputs[0];
                let (root, view) = self.locate(node.inputs[0]);
                let def = node.op.def();
                let placed = match def.view(&view, g.ty(v)) {
                    Some(seen) => (root, seen),
                    None => {
                        let name = format!("{}.copy", node.name);
                        let (root, dense) = self.copy(name, root, &view, node.region.phase());
                        let seen = def.view(&dense, g.ty(v));
                        (
                            root,
                            seen.unwrap_or_else(|| {
                                panic!("`{}` of a dense tensor", node.op.name())
                            }),
                        )
                    }
                };
                self.loc[v.0 as usize] = Some(placed);
            }
            Lowering::Rows => {
                if !self.add_of_parts(id, node) {
                    self.rows(node);
                }
            }
            Lowering::Assemble => {
                let types: Vec<&TensorType> = node.inputs.iter().map(|&v| g.ty(v)).collect();
                let parts = node.op.def().parts(&types);
                let parts: VecDeque<_> = node.inputs.iter().copied().zip(parts).collect();
                let v = node.outputs[0];
                let ty = g.ty(v).clone();
                let slabs = parts::Slabs::new(g, &ty, &parts);
                self.pending.insert(v, Assembly { ty, parts, node: id, slabs });
            }
            Lowering::Kernel => {
                let operands: Vec<(usize, View)> =
                    node.inputs.iter().map(|&v| self.locate(v)).collect();
                self.kernel(node, operands)?;
            }
        }
        Ok(())
    }

    /// A dense copy of a view.
    pub fn copy(&mut self, name: String, root: usize, view: &View, phase: Phase) -> (usize, View) {
        let ty = TensorType::new(self.out.values[root].dtype, view.shape.clone());
        let to = self.value(name.clone(), &ty, Source::Computed);
        let dense = View::dense(&ty.shape);
        self.copy_item(name, None, phase, (root, view), (to, 0, dense.strides.clone()));
        (to, dense)
    }

    /// A copy of a view with its channels last; operands of several convolutions share it.
    fn with_channels_last(
        &mut self,
        name: String,
        root: usize,
        view: &View,
        phase: Phase,
    ) -> (usize, View) {
        if !channels::differs(&view.shape) {
            return self.copy(name, root, view, phase);
        }
        let key = (phase, root, view.clone());
        if let Some(made) = self.ordered.get(&key) {
            return made.clone();
        }
        let ty = TensorType::new(self.out.values[root].dtype, view.shape.clone());
        let to = self.value(name.clone(), &ty, Source::Computed);
        self.out.values[to].channels_last = true;
        let made = self.out.values[to].view();
        self.copy_item(name, None, phase, (root, view), (to, 0, made.strides.clone()));
        self.ordered.insert(key, (to, made.clone()));
        (to, made)
    }

    fn copy_item(
        &mut self,
        name: String,
        op: Option<String>,
        phase: Phase,
        (root, view): (usize, &View),
        (to, offset, strides): (usize, i64, Vec<i64>),
    ) {
        let read = self.read(root, view.offset, view.strides.clone());
        self.out.items.push(Item {
            name,
            op,
            phase,
            dims: view.shape.to_vec(),
            reduced: 0,
            reads: vec![read],
            writes: vec![Access { value: to, offset, strides }],
            body: Body::Copy,
            origin: 0,
            clone_of: None,
        });
    }

    fn read(&self, value: usize, offset: i64, strides: Vec<i64>) -> Read {
        if let Source::Const(c) = &self.out.values[value].source {
            let literal = match c.dtype.kind() {
                Kind::Real => c.splat().map(Instr::Real),
                kind => c.ints().and_then(|v| {
                    let first = *v.first()?;
                    let one = v.iter().all(|&x| x == first);
                    let int = i32::try_from(first).ok().filter(|_| one)?;
                    Some(if kind == Kind::Bool { Instr::Bool(int != 0) } else { Instr::Int(int) })
                }),
            };
            if let Some(instr) = literal {
                return Read::Literal(instr);
            }
        }
        Read::At(Access { value, offset, strides })
    }

    /// Root and view of a value; puts it together first where it is made of parts.
    fn locate(&mut self, v: ValueId) -> (usize, View) {
        if let Some(a) = self.pending.remove(&v) {
            self.assemble(v, a);
        }
        self.loc[v.0 as usize].clone().expect("operands are defined before their use")
    }

    fn rows(&mut self, node: &Node) {
        let g = self.g;
        let x: Vec<&TensorType> = node.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<&TensorType> = node.outputs.iter().map(|&v| g.ty(v)).collect();
        let spec = node.op.def().row_spec(&x, &y);
        let rank = spec.dims.len();
        let located: Vec<(usize, View)> = node.inputs.iter().map(|&v| self.locate(v)).collect();
        let reads = located
            .iter()
            .zip(&spec.inputs)
            .map(|((root, view), map)| self.read(*root, view.offset, spread(view, map, rank)))
            .collect();
        let results = self.results_of(node);
        let writes = results
            .iter()
            .zip(&spec.outputs)
            .map(|(&value, map)| Access {
                value,
                offset: 0,
                strides: spread(&self.out.values[value].view(), map, rank),
            })
            .collect();
        self.out.items.push(Item {
            name: node.name.clone(),
            op: Some(node.name.clone()),
            phase: node.region.phase(),
            dims: spec.dims,
            reduced: spec.reduced,
            reads,
            writes,
            body: Body::Rows(node.op.clone()),
            origin: 0,
            clone_of: None,
        });
    }

    fn kernel(&mut self, node: &Node, mut operands: Vec<(usize, View)>) -> Result<()> {
        let phase = node.region.phase();
        let first = operands[0].1.clone();
        let types: Vec<&TensorType> = node.inputs.iter().map(|&v| self.g.ty(v)).collect();
        // Of one pixel both orders are the same, so that its operand's is the pool's.
        let pool = matches!(node.op, Op::MaxPool2d(_) | Op::MaxPool2dGrad(_));
        let pixel = pool && !channels::differs(self.g.shape(node.outputs[0]));
        let last = channels::wants(&node.op, &types, self.widest)
            || self.last[node.outputs[0].0 as usize]
            || pixel && self.last[node.inputs[0].0 as usize];
        for (i, operand) in operands.iter_mut().enumerate() {
            let (root, view) = operand.clone();
            if !kernels::takes(&node.op, i, &view, &first, last) {
                let name = format!("{}.operand{i}", node.name);
                *operand = match last {
                    true => self.with_channels_last(name, root, &view, phase),
                    false => self.copy(name, root, &view, phase),
                };
            }
        }
        let results = self.results_of(node);
        let dense = |this: &Self, v: usize| Access {
            value: v,
            offset: 0,
            strides: this.out.values[v].view().strides,
        };
        let mut reads = vec![];
        let mut dims = vec![];
        let product = matches!(
            node.op,
            Op::MatMul(_) | Op::Conv2d(_) | Op::Conv2dDataGrad(_) | Op::Conv2dFilterGrad(_)
        );
        if product {
            dims = self.out.values[results[0]].shape.clone();
            for (root, view) in operands.drain(2..) {
                // The bias runs along the last axis, a factor of the sums along none.
                let mut strides = vec![0; dims.len()];
                *strides.last_mut().expect("a product has axes") =
                    view.strides.first().copied().unwrap_or(0);
                reads.push(self.read(root, view.offset, strides));
            }
        }
        let writes = results.iter().map(|&v| dense(self, v)).collect();
        let op = node.op.clone();
        self.out.items.push(Item {
            name: node.name.clone(),
            op: Some(node.name.clone()),
            phase,
            dims,
            reduced: 0,
            reads,
            writes,
            body: if product {
                Body::Product { op, operands }
            } else {
                Body::Kernel { op, operands }
            },
            origin: 0,
            clone_of: None,
        });
        Ok(())
    }
}
