//! Recurrent networks: all steps of an LSTM, a GRU or a plain cell as one kernel.
//!
//! The projection of the inputs is an ordinary product over all steps, before; so are the gradients
//! of the matrices, after. Equations, and the order of gates: [`RecurrentCell`].

use super::{
    Binary, Concat, GradCx, Grads, Linear, Lowering, MatMul, NumericClass, OpDef, Slice, signature,
};
use crate::ir::{Shape, TensorType, ValueId};
use precast_plan::{BinaryOp, RecurrenceShape, RecurrentCell, Squash, Way};

op! {
    /// With g = gates, s = states and k = vectors kept of the cell, d directions:
    /// (x [t,b,d,g·h], R [d,g·h,h], states [s,b,d,h], then bias [d,h] where the cell has one,
    /// peepholes [d,3·h] (i, o, f) if `peephole`, lengths [b] if `lengths`) →
    /// (y [t+s,b,d,h], kept [t,b,d,k·h], before [t,b,d,h]).
    /// x is the projected input with its biases; y the outputs and then the final states; `kept` is what
    /// the gradient needs, `before` the state h that every step began with. `f`, `g`, `h` are the
    /// activations, `way` the direction. A sequence ends after its length: later outputs are 0.
    Recurrence = "recurrence" {
        cell: RecurrentCell, way: Way, f: Squash, g: Squash, h: Squash, peephole: bool, lengths: bool,
    }
}
op! {
    /// (R, kept, before, dy [t+s,b,d,h], peepholes if `peephole`, lengths if `lengths`) →
    /// (dx [t,b,d,g·h], d_states [s,b,d,h]).
    RecurrenceGrad = "recurrence_grad" {
        cell: RecurrentCell, way: Way, f: Squash, g: Squash, h: Squash, peephole: bool, lengths: bool,
    }
}
crate::word_attr!(RecurrentCell {
    RecurrentCell::Rnn = "rnn", RecurrentCell::Lstm = "lstm", RecurrentCell::Gru = "gru",
    RecurrentCell::GruResetAfter = "gru_reset_after",
});
crate::word_attr!(Squash { Squash::Sigmoid = "sigmoid", Squash::Tanh = "tanh", Squash::Relu = "relu" });
crate::word_attr!(Way { Way::Forward = "forward", Way::Reverse = "reverse", Way::Both = "both" });

impl Recurrence {
    /// Letters of [`signature`].
    fn kinds(&self) -> String {
        let mut kinds = String::from("rrr");
        kinds.push_str(if self.cell.has_bias() { "r" } else { "" });
        kinds.push_str(if self.peephole { "r" } else { "" });
        kinds.push_str(if self.lengths { "i" } else { "" });
        kinds
    }

    fn of_gradient(g: &RecurrenceGrad) -> Recurrence {
        let &RecurrenceGrad { cell, way, f, g, h, peephole, lengths } = g;
        Recurrence { cell, way, f, g, h, peephole, lengths }
    }

    /// Sizes, from `y`'s or `before`'s extents [·,b,d,h] and the number of steps.
    fn shape(&self, steps: usize, like: &Shape) -> RecurrenceShape {
        RecurrenceShape {
            cell: self.cell,
            squash: [self.f, self.g, self.h],
            way: self.way,
            steps: steps as u64,
            batch: like[1] as u64,
            hidden: like[3] as u64,
        }
    }

    /// Sizes from the types of the operands, which fit each other.
    pub fn sizes(&self, x: &[&TensorType]) -> RecurrenceShape {
        self.shape(x[0].shape[0], &x[2].shape)
    }
}

impl RecurrenceGrad {
    /// Sizes from the types of the operands, which fit each other.
    pub fn sizes(&self, x: &[&TensorType]) -> RecurrenceShape {
        Recurrence::of_gradient(self).shape(x[2].shape[0], &x[2].shape)
    }
}

fn dims(list: Vec<u64>) -> Shape {
    list.into_iter().map(|n| n as usize).collect()
}

fn want(what: &str, t: &TensorType, list: Vec<u64>) -> Result<(), String> {
    let shape = dims(list);
    if t.shape == shape { Ok(()) } else { Err(format!("{what} is {t}, not {shape}")) }
}

/// Checks that a state [·,b,d,h] can be one of `op`.
fn state(op: &Recurrence, t: &TensorType) -> Result<(), String> {
    let s = &t.shape;
    if s.rank() != 4 || s.elements() == 0 || s[2] != op.way.directions() {
        return Err(format!("{t} are not states of {} directions", op.way.directions()));
    }
    if op.peephole && op.cell != RecurrentCell::Lstm {
        return Err("only an LSTM has peepholes".into());
    }
    Ok(())
}

impl OpDef for Recurrence {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, &self.kinds())?;
        state(self, x[2])?;
        if x[0].shape.rank() != 4 || x[0].shape[0] == 0 {
            return Err(format!("{} is not a sequence of gates", x[0]));
        }
        let s = self.sizes(x);
        want("the sequence of gates", x[0], s.gates_dims())?;
        want("the recurrent matrix", x[1], s.matrix_dims())?;
        want("the first state", x[2], s.states_dims())?;
        let mut rest = x[3..].iter();
        if self.cell.has_bias() {
            want("the recurrent bias", rest.next().expect("counted"), s.bias_dims())?;
        }
        if self.peephole {
            want("the peepholes", rest.next().expect("counted"), s.peephole_dims())?;
        }
        if self.lengths {
            want("the lengths", rest.next().expect("counted"), vec![s.batch])?;
        }
        let results = [s.y_dims(), s.kept_dims(), s.before_dims()];
        Ok(results.map(|d| TensorType::f32(dims(d))).to_vec())
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn narrow(&self) -> Option<&'static [usize]> {
        Some(&[0, 2])
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let dy = cx.only_dy(0)?;
        let &Recurrence { cell, way, f, g, h, peephole, lengths } = self;
        let (r, kept, before) = (cx.x(1), cx.y(1), cx.y(2));
        let optional: Vec<ValueId> =
            (3 + usize::from(cell.has_bias())..cx.arity()).map(|i| cx.x(i)).collect();
        let mut operands = vec![r, kept, before, dy];
        operands.extend(&optional);
        let grad = RecurrenceGrad { cell, way, f, g, h, peephole, lengths };
        let d = cx.all(grad, &operands);
        let hidden = cx.shape(before)[3];
        let (dx, d_states) = (d[0], d[1]);
        // Rows of R that multiply the same vector are one product.
        let (dr, d_bias) = match cell {
            RecurrentCell::Rnn | RecurrentCell::Lstm => (outer(cx, dx, before), None),
            RecurrentCell::Gru => {
                let (first, last) = (part(cx, dx, 0, 2 * hidden), part(cx, dx, 2 * hidden, hidden));
                let reset = part(cx, kept, 3 * hidden, hidden);
                let list = [outer(cx, first, before), outer(cx, last, reset)];
                (cx.op(Concat { axis: 1 }, &list), None)
            }
            RecurrentCell::GruResetAfter => {
                let (first, last) = (part(cx, dx, 0, 2 * hidden), part(cx, dx, 2 * hidden, hidden));
                let reset = part(cx, kept, hidden, hidden);
                let inner = cx.mul(last, reset);
                let list = [outer(cx, first, before), outer(cx, inner, before)];
                (cx.op(Concat { axis: 1 }, &list), Some(cx.sum(inner, &[0, 1])))
            }
        };
        let mut grads = vec![Some(dx), Some(dr), Some(d_states)];
        grads.extend(d_bias.map(Some));
        if peephole {
            let [di, d_o, df] = [0, 1, 2].map(|k| part(cx, dx, k * hidden, hidden));
            let [i, f, g, old] = [0, 2, 3, 4].map(|k| part(cx, kept, k * hidden, hidden));
            let (forgotten, added) = (cx.mul(f, old), cx.mul(i, g));
            let new = cx.op(Binary { f: BinaryOp::Add }, &[forgotten, added]);
            let sums = [(di, old), (d_o, new), (df, old)].map(|(d, c)| {
                let product = cx.mul(d, c);
                cx.sum(product, &[0, 1])
            });
            grads.push(Some(cx.op(Concat { axis: 1 }, &sums)));
        }
        grads.resize(cx.arity(), None);
        Ok(grads)
    }
    fn flops(&self, x: &[&TensorType], _: &[&TensorType]) -> f64 {
        self.sizes(x).flops()
    }
    fn recurrence(&self, x: &[&TensorType]) -> Option<RecurrenceShape> {
        Some(self.sizes(x))
    }
}

/// Columns of the last of four axes.
fn part(cx: &mut GradCx, v: ValueId, from: usize, n: usize) -> ValueId {
    let mut sizes = cx.shape(v).to_vec();
    if sizes[3] == n {
        return v;
    }
    sizes[3] = n;
    cx.op(Slice { starts: vec![0, 0, 0, from], sizes, steps: vec![1; 4] }, &[v])
}

/// [t,b,d,m], [t,b,d,n] → [d,m,n]: sums over steps and sequences.
fn outer(cx: &mut GradCx, a: ValueId, b: ValueId) -> ValueId {
    let flat = |cx: &mut GradCx, v: ValueId, perm: [usize; 3]| {
        let s = cx.shape(v);
        let v = cx.reshape(v, &Shape::new(&[s[0] * s[1], s[2], s[3]]));
        cx.transpose(v, &perm)
    };
    let (a, b) = (flat(cx, a, [1, 2, 0]), flat(cx, b, [1, 0, 2]));
    cx.op(MatMul::plain(), &[a, b])
}

impl OpDef for RecurrenceGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let mut kinds = String::from("rrrr");
        kinds.push_str(if self.peephole { "r" } else { "" });
        kinds.push_str(if self.lengths { "i" } else { "" });
        signature(x, &kinds)?;
        state(&Recurrence::of_gradient(self), x[2])?;
        let s = self.sizes(x);
        want("the recurrent matrix", x[0], s.matrix_dims())?;
        want("what was kept", x[1], s.kept_dims())?;
        want("the cotangent", x[3], s.y_dims())?;
        let mut rest = x[4..].iter();
        if self.peephole {
            want("the peepholes", rest.next().expect("counted"), s.peephole_dims())?;
        }
        if self.lengths {
            want("the lengths", rest.next().expect("counted"), vec![s.batch])?;
        }
        Ok([s.gates_dims(), s.states_dims()].map(|d| TensorType::f32(dims(d))).to_vec())
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn narrow(&self) -> Option<&'static [usize]> {
        Some(&[0])
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[3])
    }
    fn flops(&self, x: &[&TensorType], _: &[&TensorType]) -> f64 {
        self.sizes(x).flops()
    }
    fn recurrence(&self, x: &[&TensorType]) -> Option<RecurrenceShape> {
        Some(self.sizes(x))
    }
}
