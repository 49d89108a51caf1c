//! Epilogues of products and convolutions: inside a hand-written kernel, or after a library's.

use super::code::{Code, Section, Source, Target, Text, offset, stored};
use super::source::{address, arg, comment};
use super::space::{Bound, Layout, Space, dense_strides};
use super::{checked, lower_one};
use crate::cuda::launch::{Arg, Facts, Lowered, Place};
use crate::error::Result;
use precast_plan::{Access, DType, Epilogue, Plan};
use std::collections::BTreeSet;

/// An epilogue as a function for a kernel's text.
#[derive(Clone, Debug, PartialEq)]
pub struct EpilogueText {
    /// Two overloads (one where `width` is 1)
    ///
    /// ```text
    /// DEVICE void NAME(const float (&acc)[1], PORTS, INT i0, INT i1, …);
    /// DEVICE void NAME(const float (&acc)[WIDTH], PORTS, INT i0, INT i1, …);
    /// ```
    ///
    /// that finish one accumulator, or `width` neighbours along the lane axis: load the other
    /// inputs, compute, round, store. `i0, i1, …` are the coordinates of the first along the axes
    /// of the result (b0, b1, m, n for a product; n, c, h, w for a convolution); all lanes must be
    /// inside, and for the wide overload the lane coordinate must be a multiple of `width`. To be
    /// called once for every element.
    pub text: String,
    /// `PORTS` in the declarations, for the kernel's own parameter list:
    /// `const bf16* in1, float* out0`. Never empty.
    pub parameters: String,
    /// The names alone, for the call: `in1, out0`.
    pub names: String,
    /// The arguments of a launch for `parameters`.
    pub args: Vec<Arg>,
    /// `INT`: `int`, or `i64` where indices need it.
    pub int: &'static str,
    /// How many neighbours the wide overload takes: 1, 2, 4 or 8.
    pub width: u32,
}

fn space<'a>(
    plan: &'a Plan,
    epilogue: &Epilogue,
    infos: &'a [precast_plan::RegInfo],
    dims: &[u64],
    acc: Place,
    strides: Vec<i64>,
) -> Space<'a> {
    let bound = |list: &[Access]| list.iter().map(|a| Bound::tensor(plan, a)).collect::<Vec<_>>();
    let mut inputs = vec![Bound::dense(plan, acc, DType::F32, strides)];
    inputs.extend(bound(&epilogue.inputs));
    Space {
        program: &plan.programs[epilogue.program as usize],
        infos,
        dims: dims.to_vec(),
        reduced: 0,
        inputs,
        outputs: bound(&epilogue.outputs),
    }
}

/// The epilogue as a `__device__` function `name`. `dims` are the axes of the result; lanes of the
/// wide overload run along `lane_axis`.
///
/// # Errors
/// If the program is not well formed, which validation of the plan excludes.
pub fn epilogue_function(
    plan: &Plan,
    epilogue: &Epilogue,
    dims: &[u64],
    lane_axis: usize,
    name: &str,
) -> Result<EpilogueText> {
    let infos = checked(plan, epilogue.program)?;
    let acc = Place::Scratch { offset: 0 };
    let space = space(plan, epilogue, &infos, dims, acc, dense_strides(dims));
    let layout = Layout::plain(&space, lane_axis);
    let code = Code::new(&space, &layout, false);
    let int = layout.int();
    let lane = |s: &super::space::Steps| s.red.last().copied().unwrap_or(0);
    // The accumulator is in registers, so it sets no bound.
    let used = |p: usize| p > 0 && lane(&layout.ports[p]) == 1;
    let width = layout.width(&space, false, false, &used);

    let inputs: Vec<usize> = (1..space.inputs.len())
        .filter(|&p| {
            let loads = |i: &precast_plan::Instr| {
                matches!(i, precast_plan::Instr::Load { port } if *port as usize == p)
            };
            code.program.code.iter().zip(&code.live).any(|(i, &live)| live && loads(i))
        })
        .collect();
    let mut parameters = vec![];
    let mut names = vec![];
    let mut args = vec![];
    for &p in &inputs {
        parameters.push(format!("const {}* in{p}", stored(space.inputs[p].dtype)));
        names.push(format!("in{p}"));
        args.push(arg(space.inputs[p].place));
    }
    for (o, b) in space.outputs.iter().enumerate() {
        parameters.push(format!("{}* out{o}", stored(b.dtype)));
        names.push(format!("out{o}"));
        args.push(arg(b.place));
    }
    let axes: Vec<String> = (0..dims.len()).map(|d| format!("i{d}")).collect();
    let order = (0..dims.len()).filter(|&d| d != lane_axis).chain([lane_axis]);
    let at: Vec<String> = order.map(|d| axes[d].clone()).collect();
    let coordinates: Vec<String> = axes.iter().map(|a| format!("{int} {a}")).collect();
    let sources = |p: usize| -> Source {
        if p == 0 {
            return Source::Lanes("acc".into());
        }
        let steps = &layout.ports[p].red;
        let from = address(&format!("in{p}"), &offset(steps, &at));
        Source::Memory { address: from, step: lane(&layout.ports[p]) }
    };
    let stores: Vec<(usize, Target)> = (0..space.outputs.len())
        .map(|o| {
            let s = &layout.ports[space.inputs.len() + o];
            let to = address(&format!("out{o}"), &offset(&s.red, &at));
            (o, Target { address: to, step: lane(s) })
        })
        .collect();
    let none = BTreeSet::new();
    let mut t = Text::default();
    comment(&mut t, space.program);
    let parameters = parameters.join(", ");
    for v in if width == 1 { vec![1] } else { vec![1, width] } {
        t.line(format!("DEVICE void {name}(const float (&acc)[{v}], {parameters},"));
        t.open(format!("    {}) {{", coordinates.join(", ")));
        code.scalars(&mut t);
        let section = Section {
            v,
            sources: &sources,
            kept: &none,
            kept_name: &|r| format!("x{r}"),
            ready: &none,
            kept_at: &[],
            red_at: &at,
            reduce: &[],
            moments: &[],
            stores: &stores,
            guard: "",
            loaded: &|_, _, _| {},
        };
        code.section(&mut t, &section);
        t.close();
    }
    Ok(EpilogueText { text: t.out, parameters, names: names.join(", "), args, int, width })
}

/// Lowers the epilogue of a product or a convolution to a launch of its own over the f32 result
/// `acc`, dense over `dims` with these strides; `acc` may lie where an f32 output does.
///
/// # Errors
/// If the program is not well formed, which validation of the plan excludes.
pub fn lower_epilogue(
    plan: &Plan,
    epilogue: &Epilogue,
    dims: &[u64],
    (acc, strides): (Place, Vec<i64>),
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let infos = checked(plan, epilogue.program)?;
    let space = space(plan, epilogue, &infos, dims, acc, strides);
    let layout = Layout::new(&space);
    lower_one(&space, &layout, facts, out);
    Ok(())
}
