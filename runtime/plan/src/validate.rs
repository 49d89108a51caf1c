//! Validation: what a runtime may rely on.
//!
//! Checked, all errors collected: every index is in range; names are unique; tensors lie aligned
//! inside their regions and persistent ones apart; programs are well formed and their ports match
//! the tensors bound to them; every access stays inside its tensor; no output writes an element
//! twice; a step reads what it writes only through the same access map; inputs and constants are
//! never written; temporaries are written before they are read, and those alive together lie apart;
//! first values are values of their formats, and copies of weights begin as such; what is reported as
//! one number is one.

use crate::dtype::{DType, Kind};
use crate::liveness;
use crate::program::RegInfo;
use crate::schema::{Init, Named, Plan, Role, Step, Storage, Tensor, TensorId, VERSION};
use crate::uses::{Use, uses};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

/// A fault of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    /// ``tensor `x` ``, ``step 3 `fc1` ``, `arena`, ….
    pub place: String,
    pub message: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for PlanError {}

/// Most axes of a tensor or an iteration space.
pub const MAX_RANK: usize = 8;
/// Most elements of a tensor, and most points of an iteration space.
pub const MAX_ELEMENTS: u64 = 1 << 40;
/// Most bytes of a region.
pub const MAX_BYTES: u64 = 1 << 44;
/// Alignment of tensors, bytes.
pub const ALIGN: u64 = 64;
/// Most instructions of a program, and most ports.
pub const MAX_CODE: usize = 16_384;

/// What has been learned of a plan so far.
pub(crate) struct Context<'a> {
    pub plan: &'a Plan,
    /// Elements of each tensor; 0 where the shape is not usable.
    pub elements: Vec<u64>,
    /// Checked programs; `None` where the check failed.
    pub infos: Vec<Option<Vec<RegInfo>>>,
    pub errors: Vec<PlanError>,
}

impl Context<'_> {
    pub fn error(&mut self, place: impl Into<String>, message: impl Into<String>) {
        self.errors.push(PlanError { place: place.into(), message: message.into() });
    }

    /// Bytes of a tensor.
    pub fn bytes(&self, t: TensorId) -> u64 {
        self.elements[t as usize] * self.plan.tensors[t as usize].dtype.size() as u64
    }

    /// Region (0 arena, 1 persistent, 2 inputs) and byte offset of a tensor.
    pub fn place(&self, t: TensorId) -> (u8, u64) {
        match self.plan.tensors[t as usize].storage {
            Storage::Arena { offset } => (0, offset),
            Storage::Persistent { offset, .. } => (1, offset),
            Storage::Input { offset } => (2, offset),
        }
    }
}

/// The elements of a shape, if it is usable.
fn elements(shape: &[u64]) -> Option<u64> {
    if shape.len() > MAX_RANK {
        return None;
    }
    let n = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
    (1..=MAX_ELEMENTS).contains(&n).then_some(n)
}

impl Plan {
    /// Checks everything a runtime relies on.
    ///
    /// # Errors
    /// All faults found, in the plan's order.
    pub fn validate(&self) -> Result<(), Vec<PlanError>> {
        let mut cx = Context {
            plan: self,
            elements: self.tensors.iter().map(|t| elements(&t.shape).unwrap_or(0)).collect(),
            infos: vec![],
            errors: vec![],
        };
        header(&mut cx);
        tensors(&mut cx);
        for (p, program) in self.programs.iter().enumerate() {
            let place = format!("program {p} `{}`", program.name);
            let ports = program.inputs.len().max(program.outputs.len());
            let checked = if program.code.len() > MAX_CODE || ports > MAX_CODE {
                Err(format!("more than {MAX_CODE} instructions or ports"))
            } else {
                program.check()
            };
            let infos = checked.map_err(|e| cx.error(place, e)).ok();
            cx.infos.push(infos);
        }
        let phases = [("micro", &self.micro), ("update", &self.update), ("eval", &self.eval)];
        let mut all: Vec<Vec<Vec<Use>>> = vec![];
        for (phase, steps) in phases {
            let mut list = vec![];
            for (i, step) in steps.iter().enumerate() {
                list.push(check_step(&mut cx, &format!("{phase} step {i} `{}`", step.name), step));
            }
            all.push(list);
        }
        for (what, list) in [("result", &self.results), ("eval result", &self.eval_results)] {
            results(&mut cx, what, list);
        }
        classes(&mut cx);
        // Liveness reads sizes and offsets, which must be sound.
        if cx.errors.is_empty() {
            let eval = all.pop().expect("three phases");
            let main: Vec<Vec<Use>> = all.into_iter().flatten().collect();
            liveness::check(&mut cx, "micro, update", &main, &self.results);
            liveness::check(&mut cx, "eval", &eval, &self.eval_results);
        }
        if cx.errors.is_empty() { Ok(()) } else { Err(cx.errors) }
    }
}

fn header(cx: &mut Context) {
    let plan = cx.plan;
    if plan.version != VERSION {
        cx.error("plan", format!("version {} is not {VERSION}", plan.version));
    }
    if plan.accumulate == 0 {
        cx.error("plan", "accumulate is 0");
    }
    for (name, bytes) in [("arena", plan.arena_bytes), ("persistent region", plan.persistent_bytes)]
    {
        if bytes > MAX_BYTES {
            cx.error(name, format!("{bytes} bytes are more than {MAX_BYTES}"));
        }
    }
    let steps = plan.micro.iter().chain(&plan.update).chain(&plan.eval);
    for s in steps.filter(|s| !s.predicted_ns.is_finite()) {
        cx.error(format!("step `{}`", s.name), "the predicted time is not finite");
    }
}

fn tensors(cx: &mut Context) {
    let plan = cx.plan;
    let mut names = BTreeMap::new();
    let mut regions: [Vec<(u64, u64, TensorId)>; 3] = Default::default();
    for (i, t) in plan.tensors.iter().enumerate() {
        let place = format!("tensor `{}`", t.name);
        if let Some(first) = names.insert(&t.name, i) {
            cx.error(&place, format!("tensors {first} and {i} have the same name"));
        }
        if cx.elements[i] == 0 {
            let text = format!(
                "shape {:?}: at most {MAX_RANK} axes of at least 1 and {MAX_ELEMENTS} elements",
                t.shape
            );
            cx.error(&place, text);
            continue;
        }
        let id = i as TensorId;
        let (region, offset) = cx.place(id);
        let limit = [plan.arena_bytes, plan.persistent_bytes, MAX_BYTES][region as usize];
        if !offset.is_multiple_of(ALIGN) {
            cx.error(&place, format!("offset {offset} is not a multiple of {ALIGN}"));
        }
        match offset.checked_add(cx.bytes(id)) {
            Some(end) if end <= limit => regions[region as usize].push((offset, end, id)),
            _ => cx.error(
                &place,
                format!("offset {offset} and {} bytes exceed the region of {limit}", cx.bytes(id)),
            ),
        }
        if let Storage::Persistent { role, init, .. } = &t.storage {
            check_init(cx, &place, id, t, init);
            // What a checkpoint or a person sets follows from the weight.
            let copy = matches!(init, Init::CopyOf(_) | Init::ChannelsLastOf(_));
            if *role == Role::WeightCopy && !copy {
                cx.error(&place, "a copy of a weight that begins as something else");
            }
        }
    }
    for list in &mut regions[1..] {
        list.sort_unstable();
        for w in list.windows(2) {
            if w[0].1 > w[1].0 {
                let name = |k: usize| &plan.tensors[w[k].2 as usize].name;
                let text = format!("overlaps `{}`", name(1));
                cx.error(format!("tensor `{}`", name(0)), text);
            }
        }
    }
}

fn check_init(cx: &mut Context, place: &str, id: TensorId, t: &Tensor, init: &Init) {
    let real = t.dtype.kind() == Kind::Real;
    match init {
        Init::Zeros | Init::Weights(_) => {}
        Init::Value(x) => {
            if !t.dtype.holds(*x) {
                cx.error(place, format!("the initial value {x:?} is none of {}", t.dtype));
            }
        }
        Init::File { path, dtype, .. } => {
            // A plan from a stranger must not read files of its own choosing.
            let inside = !path.is_empty()
                && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
            if !inside {
                cx.error(place, format!("the file `{path}` is not inside the model's folder"));
            }
            if dtype.kind() != t.dtype.kind() {
                cx.error(place, format!("{dtype} elements do not start a {} tensor", t.dtype));
            }
        }
        Init::Uniform { bound, .. } => {
            if !real || !bound.is_finite() || *bound < 0.0 {
                cx.error(place, "a uniform start needs a real format and a finite bound");
            }
        }
        Init::Normal { mean, std, .. } => {
            if !real || !mean.is_finite() || !std.is_finite() || *std < 0.0 {
                cx.error(place, "a normal start needs a real format, a finite mean and deviation");
            }
        }
        Init::CopyOf(from) | Init::ChannelsLastOf(from) => {
            match cx.plan.tensors.get(*from as usize) {
                None => cx.error(place, format!("copies tensor {from}, which does not exist")),
                Some(f) => {
                    let source = matches!(&f.storage, Storage::Persistent { init, .. }
                    if !matches!(init, Init::CopyOf(_) | Init::ChannelsLastOf(_)));
                    if !source {
                        cx.error(place, format!("`{}` is not a persistent original", f.name));
                    }
                    let shape = match (init, &f.shape[..]) {
                        (Init::ChannelsLastOf(_), &[o, c, h, w]) => vec![o, h, w, c],
                        (Init::ChannelsLastOf(_), _) => vec![],
                        (_, shape) => shape.to_vec(),
                    };
                    if shape != t.shape || f.dtype.kind() != t.dtype.kind() {
                        cx.error(place, format!("`{}` has another shape or kind", f.name));
                    }
                }
            }
        }
        Init::Bytes(hex) => {
            let want = cx.bytes(id) * 2;
            if hex.len() as u64 != want || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                cx.error(place, format!("the initial bytes are not {want} base-16 digits"));
            }
        }
    }
}

/// Results of a step that reports show as one number.
const NUMBERS: [&str; 6] = ["loss", "loss_scale", "skipped", "grad_norm", "counted", "lr"];

fn results(cx: &mut Context, what: &str, list: &[Named]) {
    let mut names = BTreeMap::new();
    for r in list {
        let place = format!("{what} `{}`", r.name);
        match cx.elements.get(r.tensor as usize) {
            None => cx.error(&place, format!("there is no tensor {}", r.tensor)),
            Some(n) if what == "result" && NUMBERS.contains(&r.name.as_str()) && *n != 1 => {
                let name = &cx.plan.tensors[r.tensor as usize].name;
                cx.error(&place, format!("`{name}` is not one number"));
            }
            Some(_) => {}
        }
        if names.insert(&r.name, ()).is_some() {
            cx.error(&place, "listed twice");
        }
    }
}

fn classes(cx: &mut Context) {
    for c in &cx.plan.classes {
        let fault = match cx.plan.tensors.get(c.tensor as usize) {
            None => format!("there is no tensor {}", c.tensor),
            Some(t)
                if !matches!(t.storage, Storage::Input { .. }) || t.dtype.kind() != Kind::Int =>
            {
                format!("`{}` is not an integer input", t.name)
            }
            Some(_) if c.count == 0 || i64::try_from(c.count).is_err() => {
                format!("{} classes", c.count)
            }
            Some(_) => continue,
        };
        cx.error("classes", fault);
    }
}

/// Checks one step alone; returns its uses for the checks across steps (none where it is broken).
fn check_step(cx: &mut Context, place: &str, step: &Step) -> Vec<Use> {
    let before = cx.errors.len();
    let list = uses(cx, place, &step.kernel);
    for u in &list {
        check_access(cx, place, u);
    }
    if cx.errors.len() > before {
        return vec![];
    }
    let spans = Spans::new(cx, &list);
    for (i, w) in list.iter().enumerate().filter(|(_, u)| u.write) {
        let name = &cx.plan.tensors[w.tensor as usize].name;
        match &cx.plan.tensors[w.tensor as usize].storage {
            Storage::Input { .. } => cx.error(place, format!("writes the input `{name}`")),
            Storage::Persistent { role: Role::Constant, .. } => {
                cx.error(place, format!("writes the constant `{name}`"));
            }
            _ => {}
        }
        for k in spans.meeting(i) {
            let other = &list[k];
            if k == i || other.write && k < i || !overlap(cx, w, other) {
                continue;
            }
            let second = &cx.plan.tensors[other.tensor as usize].name;
            if other.write {
                cx.error(place, format!("writes `{name}` and `{second}`, which overlap"));
            } else if !same_map(cx, w, other) {
                let text = format!(
                    "reads `{second}` and writes `{name}` in the same memory through different maps"
                );
                cx.error(place, text);
            }
        }
    }
    list
}

/// The bytes of a step's accesses in order, so that those which meet one are found without asking
/// all: an update of a large model has thousands.
struct Spans {
    /// Region, first byte, end, access; ascending.
    sorted: Vec<(u8, i128, i128, usize)>,
    /// The largest end so far, in the same region.
    reach: Vec<i128>,
    /// Where in `sorted` each access is.
    at: Vec<usize>,
}

impl Spans {
    fn new(cx: &Context, list: &[Use]) -> Spans {
        let mut sorted: Vec<(u8, i128, i128, usize)> = list
            .iter()
            .enumerate()
            .map(|(i, u)| {
                let (from, to) = span(cx, u);
                (cx.place(u.tensor).0, from, to, i)
            })
            .collect();
        sorted.sort_unstable();
        let mut at = vec![0; list.len()];
        let mut reach: Vec<i128> = Vec::with_capacity(list.len());
        for (k, &(region, _, to, i)) in sorted.iter().enumerate() {
            at[i] = k;
            let before = (k > 0 && sorted[k - 1].0 == region).then(|| reach[k - 1]);
            reach.push(before.map_or(to, |b| b.max(to)));
        }
        Spans { sorted, reach, at }
    }

    /// Accesses that may touch a byte of access `i`, itself among them, ascending.
    fn meeting(&self, i: usize) -> Vec<usize> {
        let (region, from, to, _) = self.sorted[self.at[i]];
        let end = self.sorted.partition_point(|s| (s.0, s.1) < (region, to));
        let mut found = vec![];
        for k in (0..end).rev() {
            let s = self.sorted[k];
            if s.0 != region || self.reach[k] <= from {
                break;
            }
            if s.2 > from {
                found.push(s.3);
            }
        }
        found.sort_unstable();
        found
    }
}

/// Whether two accesses may touch the same byte.
fn overlap(cx: &Context, a: &Use, b: &Use) -> bool {
    if cx.place(a.tensor).0 != cx.place(b.tensor).0 {
        return false;
    }
    let ((fa, ta), (fb, tb)) = (span(cx, a), span(cx, b));
    if ta <= fb || tb <= fa {
        return false;
    }
    if a.tensor != b.tensor {
        return true;
    }
    !apart(cx.elements[a.tensor as usize], a, b)
}

/// The bytes from the first element of an access to the end of its last. In bounds already.
fn span(cx: &Context, u: &Use) -> (i128, i128) {
    let (mut low, mut high) = (i128::from(u.offset), i128::from(u.offset));
    for (&n, &s) in u.dims.iter().zip(&u.strides) {
        let reach = (i128::from(n) - 1) * i128::from(s);
        if reach < 0 { low += reach } else { high += reach }
    }
    let size = cx.plan.tensors[u.tensor as usize].dtype.size() as i128;
    let base = i128::from(cx.place(u.tensor).1);
    (base + low * size, base + (high + 1) * size)
}

/// Whether two accesses to one tensor touch different elements for a reason that is easily seen:
/// for some modulus they lie in intervals of residues that do not meet, as columns of a matrix do
/// modulo its row length.
fn apart(elements: u64, a: &Use, b: &Use) -> bool {
    let axes = |u: &Use| -> Vec<(u64, u64)> {
        let wide = u.dims.iter().zip(&u.strides).filter(|(n, s)| **n > 1 && **s != 0);
        wide.map(|(&n, &s)| (n, s.unsigned_abs())).collect()
    };
    if a.strides.iter().chain(&b.strides).any(|&s| s < 0) {
        return false;
    }
    let (x, y) = (axes(a), axes(b));
    let interval = |offset: u64, axes: &[(u64, u64)], modulus: u64| -> Option<(u64, u64)> {
        let inner = axes.iter().filter(|(_, s)| s % modulus != 0);
        let reach = inner.map(|(n, s)| (n - 1) * s).sum::<u64>();
        let start = offset % modulus;
        (start + reach < modulus).then_some((start, start + reach))
    };
    let moduli = x.iter().chain(&y).map(|&(_, s)| s).chain([elements]);
    moduli.into_iter().any(|m| match (interval(a.offset, &x, m), interval(b.offset, &y, m)) {
        (Some((a0, a1)), Some((b0, b1))) => a1 < b0 || b1 < a0,
        _ => false,
    })
}

/// Whether every point of the same space is read and written at the same address.
fn same_map(cx: &Context, w: &Use, r: &Use) -> bool {
    let byte = |u: &Use| {
        let size = cx.plan.tensors[u.tensor as usize].dtype.size() as u64;
        (cx.place(u.tensor).1 + u.offset * size, size)
    };
    let steps = |u: &Use| -> Vec<i64> {
        u.dims.iter().zip(&u.strides).map(|(&n, &s)| if n == 1 { 0 } else { s }).collect()
    };
    w.space.is_some() && w.space == r.space && byte(w) == byte(r) && steps(w) == steps(r)
}

/// Bounds, and that a written element is written once.
fn check_access(cx: &mut Context, place: &str, u: &Use) {
    let name = &cx.plan.tensors[u.tensor as usize].name;
    let total = i128::from(cx.elements[u.tensor as usize]);
    if u.strides.len() != u.dims.len() {
        let text = format!(
            "{} of `{name}` has {} strides for {} axes",
            u.what,
            u.strides.len(),
            u.dims.len()
        );
        return cx.error(place, text);
    }
    let (mut low, mut high) = (i128::from(u.offset), i128::from(u.offset));
    for (&n, &s) in u.dims.iter().zip(&u.strides) {
        let reach = (i128::from(n) - 1) * i128::from(s);
        if reach < 0 { low += reach } else { high += reach }
    }
    if low < 0 || high >= total {
        let text =
            format!("{} reaches elements {low} to {high} of `{name}`, which has {total}", u.what);
        return cx.error(place, text);
    }
    if u.write {
        let mut axes: Vec<(u64, i128)> = u
            .dims
            .iter()
            .zip(&u.strides)
            .enumerate()
            .filter(|&(d, (&n, _))| n > 1 && !u.still.contains(&d))
            .map(|(_, (&n, &s))| (s.unsigned_abs(), i128::from(n) - 1))
            .collect();
        axes.sort_unstable();
        let mut reach = 0i128;
        for (s, n) in axes {
            if i128::from(s) <= reach {
                let text = format!("{} writes elements of `{name}` more than once", u.what);
                return cx.error(place, text);
            }
            reach += n * i128::from(s);
        }
    }
    if u.dims.contains(&0) {
        cx.error(place, format!("{} has an empty axis", u.what));
    }
}

/// Whether `dtype` fits what a kernel wants.
pub(crate) fn kind_is(dtype: DType, kind: Kind) -> bool {
    dtype.kind() == kind
}
