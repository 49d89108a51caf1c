//! From a decoded model to a graph: the walk over the nodes, and what converters build with.

use super::convert;
use super::faults::Faults;
use super::fold;
use super::lost::Lost;
use super::moves::{self, Move};
use super::node::{Attrs, Seen, fail};
use super::params::{Known, Role, roles};
use super::proto::NodeProto;
use super::source::Source;
use super::stops::{Globs, Stops};
use super::tensor::{Data, Elem, Tensor, checked_elements};
use super::variables::aliases;
use super::{ImportOptions, Imported};
use crate::diagnostic::{Diagnostic, Result};
use crate::frontend::weights::WeightFile;
use crate::ir::{ConstData, Graph, Region, Result_, TensorType, ValueId, VarRole};
use crate::ops::{self, Op};
use precast_plan::{DType, Kind};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Results of converters: a message without a place.
pub type Res<T> = std::result::Result<T, Diagnostic>;

/// What an ONNX value is during import.
#[derive(Clone, Debug)]
pub enum Val {
    /// Known now.
    Const(Rc<Tensor>),
    /// Computed by the graph.
    Node(ValueId),
    /// A sequence, known part by part.
    Seq(Vec<Val>),
}

impl Val {
    pub fn constant(t: Tensor) -> Val {
        Val::Const(Rc::new(t))
    }
}

/// A node being converted.
pub struct Call<'n> {
    pub op: &'n str,
    /// All operands; [`Call::input`] notes which were read.
    pub inputs: Vec<Option<Val>>,
    pub read: Seen,
    pub attrs: Attrs<'n>,
    /// Names of results; empty where unused.
    pub outputs: &'n [String],
}

impl Call<'_> {
    /// Operand `i`, if present.
    pub fn input(&self, i: usize) -> Option<&Val> {
        self.read.mark(i);
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// What the converter of this node did not look at has not been understood.
    ///
    /// # Errors
    /// P0206: an attribute or operand that was never read.
    fn all_understood(&self) -> Res<()> {
        let op = self.op;
        if let Some(name) = self.attrs.unread() {
            return Err(fail("P0206", format!("attribute `{name}` of `{op}` is not supported"))
                .help("export the model without it, or with an opset that does not have it"));
        }
        let given = |i: &usize| self.inputs[*i].is_some() && !self.read.operand(*i);
        if let Some(i) = (0..self.inputs.len()).find(given) {
            return Err(fail("P0206", format!("operand {i} of `{op}` is not supported"))
                .help("export the model without it"));
        }
        Ok(())
    }

    /// # Errors
    /// P0214 where it is absent.
    pub fn need(&self, i: usize) -> Res<&Val> {
        self.input(i).ok_or_else(|| fail("P0214", format!("operand {i} is missing")))
    }

    /// Operand `i` as a literal.
    ///
    /// # Errors
    /// P0216 where only the running graph knows it.
    pub fn literal(&self, i: usize) -> Res<Option<&Tensor>> {
        match self.input(i) {
            None => Ok(None),
            Some(Val::Const(t)) => Ok(Some(t)),
            Some(_) => Err(fail("P0216", format!("operand {i} depends on data")).help(
                "shapes, axes and indices like this one must be known when compiling; let them \
                 follow from extents and constants, not from values of the model",
            )),
        }
    }

    /// Operand `i` as literal integers.
    ///
    /// # Errors
    /// P0216 as [`Call::literal`], P0214 where it is not integer.
    pub fn ints(&self, i: usize) -> Res<Option<Vec<i64>>> {
        match self.literal(i)? {
            None => Ok(None),
            Some(t) => t
                .to_ints()
                .map(Some)
                .ok_or_else(|| fail("P0214", format!("operand {i} is {:?}, not integer", t.elem))),
        }
    }

    /// A literal operand, or else an attribute: where operators moved a list from one to the other.
    pub fn ints_or(&self, i: usize, attr: &str) -> Res<Option<Vec<i64>>> {
        match self.ints(i)? {
            Some(v) => Ok(Some(v)),
            None => self.attrs.ints(attr),
        }
    }

    /// Whether result `i` is read or named.
    pub fn wants(&self, i: usize) -> bool {
        self.outputs.get(i).is_some_and(|o| !o.is_empty())
    }
}

/// The state of an import.
pub struct Importer<'a> {
    pub src: &'a Source,
    pub opts: &'a ImportOptions,
    pub graph: Graph,
    pub warnings: Vec<Diagnostic>,
    pub(super) values: BTreeMap<String, Val>,
    pub(super) roles: BTreeMap<String, Known>,
    pub(super) weights: Option<WeightFile>,
    /// Results that a converter does not give: what they are of, and which.
    absent: BTreeMap<String, (String, usize)>,
    /// First initializer with the same bytes: tied weights that lost one of their names.
    alias: BTreeMap<String, String>,
    pub(super) vars: BTreeMap<String, ValueId>,
    names: BTreeSet<String>,
    /// Name of the node being converted.
    pub(super) base: String,
    /// Its index.
    pub at: usize,
    pub dropouts: u32,
    /// Whether the node being converted only moves elements, so that moves carry its name.
    pub moving: bool,
    /// Variables that begin as drawn.
    pub(super) drawn: Vec<String>,
    /// Where gradients stop.
    pub(super) stops: Stops,
    /// How many nodes subgraphs have become.
    pub(super) inner: usize,
    /// In how many loops the node being converted lies.
    pub looping: usize,
    /// Integer types of fewer than 32 bits, by values' names.
    pub(super) narrow: BTreeMap<String, Elem>,
    /// Quotients that may have been rounded down in the module.
    pub(super) quotients: Vec<String>,
    /// What may have been lost of numbers.
    pub(super) lost: Lost,
}

/// Imports a model.
///
/// # Errors
/// All P02xx of `docs/ERRORS.md`.
pub fn import(src: &Source, opts: &ImportOptions) -> Result<Imported> {
    let weights = opts.weights.as_deref().map(WeightFile::open).transpose()?;
    let wanted = Globs::new(&opts.parameters);
    let roles = roles(src, &|name| wanted.matches(name));
    wanted.all_found(&roles)?;
    let stops = Stops::new(src, &opts.stop_gradient)?;
    if let Some(file) = &weights {
        let names = roles.iter().filter(|(_, k)| !k.role.is_constant());
        file.check_names(&names.map(|(n, _)| n.as_str()).collect::<Vec<_>>())?;
    }
    let mut cx = Importer {
        src,
        opts,
        graph: Graph::new(src.graph.name.clone().unwrap_or_default()),
        warnings: Vec::new(),
        values: BTreeMap::new(),
        roles,
        weights,
        absent: BTreeMap::new(),
        alias: aliases(src),
        vars: BTreeMap::new(),
        names: BTreeSet::new(),
        base: String::new(),
        at: 0,
        dropouts: 0,
        moving: false,
        drawn: Vec::new(),
        stops,
        inner: 0,
        looping: 0,
        narrow: BTreeMap::new(),
        quotients: Vec::new(),
        lost: Lost::new(),
    };
    let inputs = cx.inputs()?;
    let mut faults = Faults::default();
    for (i, node) in src.graph.node.iter().enumerate() {
        // What reads the result of a node that was refused is not looked at.
        let inner = super::control::captured(node).map_err(|e| e.at(src.node_place(i)))?;
        if node.input.iter().chain(&inner).any(|x| faults.missing.contains(x)) {
            faults.missing.extend(node.output.iter().filter(|y| !y.is_empty()).cloned());
            continue;
        }
        cx.at = i;
        if let Err(e) = cx.convert(node) {
            let place = match e.place {
                None => Some(src.node_place(i)),
                Some(_) => None,
            };
            faults.add(match place {
                Some(place) => e.at(place),
                None => e,
            });
            faults.missing.extend(node.output.iter().filter(|y| !y.is_empty()).cloned());
        }
    }
    faults.finish()?;
    let outputs = cx.results()?;
    cx.finish(inputs, outputs)
}

impl<'a> Importer<'a> {
    /// Converts a node and notes its results.
    pub(super) fn convert(&mut self, node: &NodeProto) -> Res<()> {
        let op = node.op_type.as_deref().unwrap_or_default();
        self.base = match node.name.as_deref() {
            Some(n) if !n.is_empty() => n.into(),
            _ => format!("{op}_{}", self.at),
        };
        if matches!(op, "If" | "Loop") {
            let results = if op == "If" { self.branch(node)? } else { self.unrolled(node)? };
            for (name, value) in node.output.iter().zip(results) {
                self.values.insert(name.clone(), value);
            }
            return Ok(());
        }
        let inputs = node
            .input
            .iter()
            .map(|x| if x.is_empty() { Ok(None) } else { self.operand(x).map(Some) })
            .collect::<Res<_>>()?;
        self.moving = convert::MOVING.contains(&op);
        let seen = Seen::default();
        let attrs = Attrs::new(node, &seen);
        let call = Call { op, inputs, read: Seen::default(), attrs, outputs: &node.output };
        let results = convert::node(self, &call)?;
        call.all_understood()?;
        self.note_quotient(node)?;
        self.note_complement(node);
        let results = self.in_range(node, results)?;
        let given = results.len();
        let results = self.stopped(node, results)?;
        for (name, value) in node.output.iter().zip(results) {
            if !name.is_empty() {
                self.values.insert(name.clone(), value);
            }
        }
        for (k, name) in node.output.iter().enumerate().skip(given) {
            self.absent.insert(name.clone(), (op.into(), k));
        }
        Ok(())
    }

    fn inputs(&mut self) -> Result<Vec<(String, TensorType)>> {
        let mut out = Vec::new();
        for (name, ty) in super::inputs::bind(self.src, self.opts)? {
            self.base = name.clone();
            let op = ops::Input::new(&name, &ty);
            let place = self.src.tensor_place(&name);
            let v = self.one("", op, &[]).map_err(|d| d.at(place))?;
            if ty.dtype == DType::U8 {
                self.set_narrow_type(&name, Some(Elem::U8));
            }
            self.values.insert(name.clone(), Val::Node(v));
            out.push((name, ty));
        }
        Ok(out)
    }

    fn results(&mut self) -> Result<Vec<String>> {
        let mut outputs: Vec<String> = Vec::new();
        for o in &self.src.graph.output {
            let name = o.name.clone().unwrap_or_default();
            let place = || self.src.tensor_place(&name);
            let known = self.values.contains_key(&name)
                || self.src.initializers.contains_key(&name)
                || self.absent.contains_key(&name);
            if name.is_empty() || !known {
                return Err(Diagnostic::error("P0204", "no node computes this output")
                    .at(place())
                    .into());
            }
            // What one output is called, another cannot be.
            if outputs.contains(&name) {
                return Err(Diagnostic::error("P0204", "two outputs of the model have this name")
                    .at(place())
                    .help("give one of them a name of its own: an Identity node behind the value")
                    .into());
            }
            self.base = format!("out.{name}");
            let value =
                self.operand(&name).and_then(|v| self.value(&v)).map_err(|d| d.at(place()))?;
            self.graph.results.push(Result_ { name: format!("out.{name}"), value });
            outputs.push(name);
        }
        if outputs.is_empty() {
            return Err(fail("P0204", "the model has no outputs")
                .at(crate::Place::File { path: self.src.path.clone() })
                .into());
        }
        Ok(outputs)
    }

    fn finish(
        mut self,
        inputs: Vec<(String, TensorType)>,
        outputs: Vec<String>,
    ) -> Result<Imported> {
        // In the model's order, not that of first use.
        let order: BTreeMap<&str, usize> =
            self.src.initializers.keys().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
        self.graph.vars.sort_by(|a, _, b, _| {
            order.get(a.as_str()).cmp(&order.get(b.as_str())).then_with(|| a.cmp(b))
        });
        let of = |role| {
            let vars = self.graph.vars.iter().filter(move |(_, v)| v.role == role);
            vars.map(|(n, _)| n.clone()).collect::<Vec<String>>()
        };
        let (params, buffers) = (of(VarRole::Param), of(VarRole::Buffer));
        self.warn_about_names(&params);
        self.warn_about_roles();
        self.warn_about_losses();
        self.warn_about_quotients();
        self.warn_about_losses_of_numbers();
        self.warn_about_weights();
        let Importer { graph, warnings, drawn, .. } = self;
        Ok(Imported { graph, inputs, outputs, params, buffers, drawn, warnings })
    }

    /// The value of an ONNX name.
    pub(super) fn operand(&mut self, name: &str) -> Res<Val> {
        if let Some(v) = self.values.get(name) {
            return Ok(v.clone());
        }
        let Some(init) = self.src.initializers.get(name) else {
            return Err(match self.absent.get(name) {
                Some((op, k)) => {
                    fail("P0206", format!("result {k} of `{op}` (`{name}`) is not supported"))
                }
                None => fail("P0204", format!("`{name}` is not defined")),
            });
        };
        let role = self.roles.get(name).map_or(Role::Constant, |k| k.role);
        // Of no elements there is nothing to train.
        let val = if role.is_constant() || init.shape.contains(&0) {
            fold::check_size(&init.shape).map_err(|d| d.at(self.src.tensor_place(name)))?;
            Val::constant(self.src.literal(name)?)
        } else {
            let name = self.alias.get(name).cloned().unwrap_or_else(|| name.to_string());
            Val::Node(self.variable(&name)?)
        };
        self.values.insert(name.to_string(), val.clone());
        Ok(val)
    }

    /// Appends a node named after the ONNX node, with a suffix for what is not its main operation.
    ///
    /// # Errors
    /// P0214 where the operands do not fit, P0210 where the result is too large for any machine.
    pub fn all(
        &mut self,
        suffix: &str,
        op: impl Into<Op>,
        inputs: &[ValueId],
    ) -> Res<SmallVec<[ValueId; 2]>> {
        let stem =
            if suffix.is_empty() { self.base.clone() } else { format!("{}.{suffix}", self.base) };
        let mut name = stem.clone();
        let mut k = 1;
        while !self.names.insert(name.clone()) {
            k += 1;
            name = format!("{stem}.{k}");
        }
        let out =
            self.graph.try_add(op, inputs, name, Region::Forward).map_err(|e| fail("P0214", e))?;
        for &v in &out {
            let dims: Vec<i64> = self.graph.shape(v).iter().map(|&d| d as i64).collect();
            checked_elements(&dims).map_err(|e| fail("P0210", e))?;
        }
        Ok(out)
    }

    /// [`Importer::all`] for an operation whose first result is wanted.
    pub fn one(&mut self, suffix: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Res<ValueId> {
        Ok(self.all(suffix, op, inputs)?[0])
    }

    /// Extents of a value.
    pub fn shape(&self, v: &Val) -> Res<Vec<usize>> {
        match v {
            Val::Const(t) => Ok(t.shape.clone()),
            Val::Node(v) => Ok(self.graph.shape(*v).to_vec()),
            Val::Seq(_) => Err(fail("P0207", "a sequence where a tensor is needed")),
        }
    }

    pub fn kind(&self, v: &Val) -> Res<Kind> {
        match v {
            Val::Const(t) => Ok(match t.data {
                Data::Real(_) => Kind::Real,
                Data::Int(_) => Kind::Int,
                Data::Bool(_) => Kind::Bool,
            }),
            Val::Node(v) => Ok(self.graph.ty(*v).kind()),
            Val::Seq(_) => Err(fail("P0207", "a sequence where a tensor is needed")),
        }
    }

    /// A value as a graph value. A literal becomes a constant that stores repeated elements once.
    pub fn value(&mut self, v: &Val) -> Res<ValueId> {
        match v {
            Val::Node(v) => Ok(*v),
            Val::Seq(_) => Err(fail("P0207", "a sequence where a tensor is needed")),
            Val::Const(t) => {
                let small = moves::without_repeats(t);
                let shape = t.shape.clone();
                let repeats = small.shape != shape;
                let c = self.one("const", ops::Const { data: small.to_const() }, &[])?;
                if repeats {
                    return self.one("broadcast", ops::Broadcast { shape }, &[c]);
                }
                Ok(c)
            }
        }
    }

    /// Operand `i` as a graph value of reals.
    ///
    /// # Errors
    /// P0207 where it is integer or bool.
    pub fn real(&mut self, call: &Call, i: usize) -> Res<ValueId> {
        let v = call.need(i)?.clone();
        match self.kind(&v)? {
            Kind::Real => self.value(&v),
            k => Err(fail("P0207", format!("operand {i} is {k}, not real"))),
        }
    }

    /// A real constant of the given extents.
    pub fn full(&mut self, x: f64, shape: &[usize]) -> Res<ValueId> {
        let data = ConstData::from_f32(vec![1; shape.len()], &[x as f32]);
        let c = self.one("const", ops::Const { data }, &[])?;
        if shape.iter().all(|&d| d == 1) {
            return Ok(c);
        }
        self.one("broadcast", ops::Broadcast { shape: shape.to_vec() }, &[c])
    }

    /// Applies moves to a value, folding where it is a literal.
    pub fn moved(&mut self, v: &Val, moves: &[Move]) -> Res<Val> {
        match v {
            Val::Const(t) => {
                let mut t = Rc::clone(t);
                for (i, m) in moves.iter().enumerate() {
                    if m.is_identity(&t.shape) {
                        continue;
                    }
                    if !fold::folds(&m.shape(&t.shape))? {
                        // A large literal stays a view of a small one.
                        let small = self.value(&Val::Const(t))?;
                        return Ok(Val::Node(self.move_value(small, &moves[i..])?));
                    }
                    t = Rc::new(m.apply(&t));
                }
                Ok(Val::Const(t))
            }
            Val::Node(v) => Ok(Val::Node(self.move_value(*v, moves)?)),
            Val::Seq(_) => Err(fail("P0207", "a sequence where a tensor is needed")),
        }
    }

    /// Appends the nodes of moves that change something.
    pub fn move_value(&mut self, v: ValueId, moves: &[Move]) -> Res<ValueId> {
        let mut v = v;
        for m in moves {
            let from = self.graph.shape(v).to_vec();
            if m.is_identity(&from) {
                continue;
            }
            let name = |own: &'static str| if self.moving { "" } else { own };
            v = match m.clone() {
                Move::Reshape(shape) => self.one(name("reshape"), ops::Reshape { shape }, &[v])?,
                Move::Transpose(perm) => {
                    self.one(name("transpose"), ops::Transpose { perm }, &[v])?
                }
                Move::Broadcast(shape) => {
                    self.one(name("broadcast"), ops::Broadcast { shape }, &[v])?
                }
                Move::Slice { starts, sizes, steps } => {
                    self.one(name("slice"), ops::Slice { starts, sizes, steps }, &[v])?
                }
            };
        }
        Ok(v)
    }

    /// A value with other extents and the same elements.
    pub fn reshape(&mut self, v: ValueId, shape: &[usize]) -> Res<ValueId> {
        self.move_value(v, &[Move::Reshape(shape.to_vec())])
    }

    pub fn transpose(&mut self, v: ValueId, perm: &[usize]) -> Res<ValueId> {
        self.move_value(v, &[Move::Transpose(perm.to_vec())])
    }

    /// A value spread to `shape` by numpy's rule.
    pub fn spread(&mut self, v: &Val, shape: &[usize]) -> Res<ValueId> {
        if let Val::Const(t) = v {
            // Broadcasting is a view: the literal itself stays small.
            let small = Val::constant(moves::without_repeats(t));
            let from = self.shape(&small)?;
            let moves = moves::broadcast(&from, shape).map_err(|e| fail("P0214", e))?;
            let aligned = self.moved(&small, &moves[..1])?;
            let v = self.value(&aligned)?;
            return self.move_value(v, &moves[1..]);
        }
        let from = self.shape(v)?;
        let moves = moves::broadcast(&from, shape).map_err(|e| fail("P0214", e))?;
        let v = self.value(v)?;
        self.move_value(v, &moves)
    }

    /// Adds a warning at the current node.
    pub fn warn(&mut self, d: Diagnostic) {
        let place = self.src.node_place(self.at);
        self.warnings.push(d.at(place));
    }
}

/// The message for a model's element type that the graph has no place for.
pub fn unsupported_input(elem: &str) -> Diagnostic {
    fail("P0207", format!("inputs of type {elem} are not supported")).help(
        "export in float32; float32, float16, bfloat16, int64, int32, uint8 and bool are read",
    )
}

/// The graph's type for an input of an ONNX element type. Reals are f32, as everywhere in a graph whose
/// formats are not chosen yet; data in 16 bits is widened.
pub fn input_dtype(code: i32) -> Res<DType> {
    let dtype = Elem::from_onnx(code).and_then(Elem::file_dtype);
    match dtype {
        Some(d) if d.is_low_precision() => Ok(DType::F32),
        Some(d) => Ok(d),
        None => Err(unsupported_input(&Elem::code_name(code))),
    }
}
