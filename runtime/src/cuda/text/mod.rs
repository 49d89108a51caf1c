//! CUDA C++ for row programs.
//!
//! [`lower_rows`] turns a step of a plan into kernels and launches; [`epilogue_function`] turns the
//! epilogue of a product or a convolution into a function for a hand-written kernel;
//! [`lower_epilogue`] runs it after a library's product. All are pure: equal arguments give equal
//! text. A kernel is its text after [`PRELUDE`], compiled with [`OPTIONS`].
//!
//! Accuracy: reals are f32; `+ - * /`, `recip` and `sqrt` are rounded once, as on the CPU (no
//! contraction, no flushing of subnormals); other functions are CUDA's single-precision ones, within
//! 1 to 4 units in the last place. Loads widen exactly and stores round to nearest, ties to even.
//! Sums are f32, each thread's part in order, then a tree: the order depends on shapes and on the
//! device's size alone, and there are no atomics, so equal inputs give equal bits.

mod code;
mod combine;
mod ends;
mod epilogue;
mod flat;
mod many;
mod moments;
mod rows;
mod samples;
mod shape;
mod source;
mod space;

pub use epilogue::{EpilogueText, epilogue_function, lower_epilogue};
pub use samples::samples;

use super::launch::{Facts, Lowered, Task};
use crate::error::{Error, Result};
use code::Text;
use precast_plan::{Instance, Plan, Program, ProgramId, RegInfo, Rows};
pub use space::dense_strides;
use space::{Layout, Space};

/// What every kernel's text begins with.
pub const PRELUDE: &str = include_str!("prelude.cuh");

/// NVRTC's options, without the architecture. Contraction would round `a * b + c` once and make a
/// program's value depend on how it is cut into kernels.
pub const OPTIONS: &[&str] = &["--std=c++17", "--fmad=false"];

/// Kinds of the registers of a program.
///
/// # Errors
/// If the program is not well formed, which validation of the plan excludes.
fn checked(plan: &Plan, program: ProgramId) -> Result<Vec<RegInfo>> {
    let program = &plan.programs[program as usize];
    program.check().map_err(|e| Error::new("R0103", e).at(format!("program `{}`", program.name)))
}

/// Lowers a step that runs a row program: appends its launches to `out`, whose scratch region grows
/// by what they need. Instances of equal form share launches.
///
/// # Errors
/// If the program is not well formed, which validation of the plan excludes; `name` is the place.
pub fn lower_rows(
    plan: &Plan,
    rows: &Rows,
    name: &str,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let infos = checked(plan, rows.program).map_err(|e| e.at(format!("step `{name}`")))?;
    let program = &plan.programs[rows.program as usize];
    if program.outputs.is_empty() {
        return Ok(());
    }
    let several = rows.instances.len() > 1;
    let mut groups: Vec<Group> = vec![];
    for instance in &rows.instances {
        let space = Space::new(plan, program, &infos, instance);
        let layout = Layout::new(&space);
        let text: Option<Text> = if !several || layout.wide {
            None
        } else if layout.rows {
            many::fits(&space, &layout).then(|| many::pass_text(&space, &layout))
        } else {
            flat::table(&space, &layout)
        };
        let Some(text) = text else {
            lower_one(&space, &layout, facts, out);
            continue;
        };
        match groups.iter_mut().find(|g| g.text == text.out) {
            Some(group) => group.spaces.push((space, layout)),
            None => groups.push(Group { text: text.out, spaces: vec![(space, layout)] }),
        }
    }
    for Group { spaces, .. } in groups {
        match (spaces.as_slice(), spaces[0].1.rows) {
            ([(space, layout)], _) => lower_one(space, layout, facts, out),
            (spaces, true) => many::lower(spaces, facts, out),
            (spaces, false) => out.tasks.push(Task::Launch(flat::many(spaces, facts))),
        }
    }
    Ok(())
}

/// Lowers one instance of a program that the plan does not list.
///
/// # Errors
/// If the program is not well formed.
pub fn lower_program(
    plan: &Plan,
    program: &Program,
    instance: &Instance,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let infos = program
        .check()
        .map_err(|e| Error::new("R0103", e).at(format!("program `{}`", program.name)))?;
    let space = Space::new(plan, program, &infos, instance);
    let layout = Layout::new(&space);
    lower_one(&space, &layout, facts, out);
    Ok(())
}

/// Spaces that one launch runs through, and the text by which they are known to be alike.
struct Group<'a> {
    text: String,
    spaces: Vec<(Space<'a>, Layout)>,
}

fn lower_one(space: &Space, layout: &Layout, facts: &Facts, out: &mut Lowered) {
    if layout.rows {
        rows::lower(space, layout, facts, out);
    } else {
        let form = flat::form(space, layout);
        out.tasks.push(Task::Launch(flat::single(space, layout, &form, facts).launch()));
    }
}

#[cfg(test)]
mod tests;
