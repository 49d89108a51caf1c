//! How sums of a product leave it: the epilogue's program as a function, or, where it only stores,
//! a function whose strides are arguments, so that products of all shapes share a compiled kernel.

use super::text::{address, c_type, dtype};
use crate::cuda::launch::Arg;
use crate::cuda::text::epilogue_function;
use crate::error::Result;
use precast_plan::{Epilogue, Instr, Plan};

/// `epilogue(acc, NAMES, i0, i1, i2, i3)` for `acc` of one or of `width` neighbours.
pub(super) struct End {
    pub text: String,
    /// Parameters that the kernel takes for it, comma-separated, and their values.
    pub parameters: String,
    pub args: Vec<Arg>,
    /// The parameters' names, for a call.
    pub names: String,
    pub width: u64,
}

/// The end of a product with axes `dims`, whose neighbours lie along `lane_axis`.
///
/// # Errors
/// If the program is not well formed, which validation of the plan excludes.
pub(super) fn end(plan: &Plan, e: &Epilogue, dims: &[u64; 4], lane_axis: usize) -> Result<End> {
    if let Some(end) = store(plan, e, dims, lane_axis) {
        return Ok(end);
    }
    let f = epilogue_function(plan, e, dims, lane_axis, "epilogue")?;
    let width = u64::from(f.width);
    Ok(End { text: f.text, parameters: f.parameters, args: f.args, names: f.names, width })
}

fn store(plan: &Plan, e: &Epilogue, dims: &[u64; 4], lane_axis: usize) -> Option<End> {
    let program = &plan.programs[e.program as usize];
    let [out] = program.outputs.as_slice() else { return None };
    if program.code[out.reg as usize] != (Instr::Load { port: 0 }) {
        return None;
    }
    let to = &e.outputs[0];
    let d = dtype(plan, to);
    let most = 16 / d.size().max(2) as u64;
    let whole = |s: u64| s.is_multiple_of(most);
    let wide = to.strides[lane_axis] == 1
        && whole(dims[lane_axis])
        && whole(to.offset)
        && (0..4).all(|a| a == lane_axis || dims[a] == 1 || whole(to.strides[a].unsigned_abs()));
    let width = if wide { most } else { 1 };
    let c = c_type(d);
    let text = format!(
        "template <int V>
DEVICE void epilogue(const float (&acc)[V], {c} *out, i64 o0, i64 o1, i64 o2, i64 o3, i64 i0, i64 i1, i64 i2, i64 i3) {{
  store<V>(out + i0 * o0 + i1 * o1 + i2 * o2 + i3 * o3, acc);
}}
"
    );
    let mut args = vec![address(plan, to)];
    args.extend(to.strides.iter().map(|&s| Arg::I64(s)));
    Some(End {
        text,
        parameters: format!("{c} *out, i64 o0, i64 o1, i64 o2, i64 o3"),
        args,
        names: "out, o0, o1, o2, o3".into(),
        width,
    })
}
