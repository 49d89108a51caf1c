//! Writes labels into a graph: storage formats, and a cast wherever a kernel reads another format
//! than is stored.

use super::{Labels, Model, storages, uniform_operands};
use crate::ir::{Graph, Node, Result_, TensorType, ValueId};
use crate::ops::{Cast, Lowering};
use precast_plan::DType;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// The graph with formats and casts. A copy in another format is made once, of the whole storage;
/// views are repeated over it.
pub fn place(g: &Graph, model: &Model, labels: &Labels) -> Graph {
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let map = vec![ValueId(u32::MAX); g.value_count()];
    let mut p =
        Placer { g, model, labels, storage: storages(g), out, map, copies: FxHashMap::default() };
    for (id, n) in g.nodes() {
        let mixed = uniform_operands(&n.op, n.inputs.len());
        let format = p.model.operands(labels, id);
        let bias = p.model.bias(labels, id);
        let inputs: SmallVec<[ValueId; 4]> = n
            .inputs
            .iter()
            .enumerate()
            .map(|(i, &v)| match (format, bias) {
                (Some(d), _) if mixed.contains(&i) => p.read(v, d),
                (_, Some((at, d))) if at == i => p.read(v, d),
                _ => p.map[v.0 as usize],
            })
            .collect();
        p.node(n, &inputs);
    }
    let rename = |rs: &[Result_]| {
        rs.iter()
            .map(|r| Result_ { name: r.name.clone(), value: p.map[r.value.0 as usize] })
            .collect()
    };
    let (results, updates) = (rename(&g.results), rename(&g.updates));
    p.out.results = results;
    p.out.updates = updates;
    p.out
}

struct Placer<'a> {
    g: &'a Graph,
    model: &'a Model,
    labels: &'a Labels,
    storage: Vec<ValueId>,
    out: Graph,
    map: Vec<ValueId>,
    /// Values in a format they are not stored in.
    copies: FxHashMap<(ValueId, DType), ValueId>,
}

impl Placer<'_> {
    fn node(&mut self, n: &Node, inputs: &[ValueId]) {
        let types = n
            .outputs
            .iter()
            .map(|&v| {
                let ty = self.g.ty(v);
                let dtype = self.model.format(self.labels, v).unwrap_or(ty.dtype);
                TensorType::new(dtype, ty.shape.clone())
            })
            .collect();
        let new = self.out.push(n.op.clone(), inputs, types, n.name.clone(), n.region);
        for (&old, new) in n.outputs.iter().zip(new) {
            self.map[old.0 as usize] = new;
        }
    }

    /// A value in a format.
    fn read(&mut self, v: ValueId, format: DType) -> ValueId {
        // Down the views to what is stored in the format, or copied to it, and up again.
        let mut views = vec![];
        let mut at = v;
        let mut seen = loop {
            if self.model.format(self.labels, at) == Some(format) {
                break self.map[at.0 as usize];
            }
            if let Some(&copy) = self.copies.get(&(at, format)) {
                break copy;
            }
            let def = self.g.def(at);
            if def.op.lowering() != Lowering::View {
                let copy = self.cast(at, format);
                self.copies.insert((at, format), copy);
                break copy;
            }
            views.push(at);
            at = def.inputs[0];
        };
        while let Some(v) = views.pop() {
            let def = self.g.def(v);
            let name = format!("{}.{format}", def.name);
            let ty = TensorType::new(format, self.g.shape(v).clone());
            seen = self.out.push(def.op.clone(), &[seen], vec![ty], name, def.region)[0];
            self.copies.insert((v, format), seen);
        }
        seen
    }

    /// A copy of a stored value in another format.
    fn cast(&mut self, v: ValueId, format: DType) -> ValueId {
        debug_assert_eq!(self.storage[v.0 as usize], v);
        let def = self.g.def(v);
        let name = match def.outputs.len() {
            1 => format!("{}.{format}", def.name),
            _ => format!("{}.{}.{format}", def.name, self.g.value(v).index),
        };
        let ty = TensorType::new(format, self.g.shape(v).clone());
        self.out.push(Cast {}.into(), &[self.map[v.0 as usize]], vec![ty], name, def.region)[0]
    }
}
