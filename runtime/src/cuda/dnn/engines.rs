//! Engines that may run a graph, and the execution plans made of them.

use super::Target;
use super::api::Cudnn;
use super::desc::{Desc, Kind, Name, Refusal, Values};
use cudarc::cudnn::sys as dnn;
use dnn::cudnnBackendAttributeType_t as Type;
use dnn::cudnnBackendHeurMode_t as Mode;
use dnn::cudnnBackendNumericalNote_t as Note;
use std::ffi::c_int;

/// Bytes of workspace that an engine may want. All graphs of a plan share the largest, which its
/// tensors then lack.
const MOST_WORKSPACE: i64 = 1 << 30;

/// Whether the engine of a configuration compiles its kernel at run time.
pub(super) fn compiles(config: &Desc) -> bool {
    let note = dnn::cudnnBackendBehaviorNote_t::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as c_int;
    let kind = Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR;
    config.list(Name::CUDNN_ATTR_ENGINECFG_ENGINE, kind, 1).is_ok_and(|engines| {
        engines.iter().any(|e| {
            e.numbers(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, Type::CUDNN_TYPE_BEHAVIOR_NOTE)
                .is_ok_and(|notes| notes.contains(&note))
        })
    })
}

/// What an earlier process found fastest for a graph.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// [`super::Graph::tag`].
    pub tag: String,
    /// [`super::Graph::saved`].
    pub plan: Option<Vec<u8>>,
}

/// The candidate that an earlier process saved: kernels that were compiled for it come with it.
pub(super) fn saved(api: &'static Cudnn, target: &Target, r: &Remembered) -> Option<Candidate> {
    let text = r.plan.as_deref()?;
    let plan = || -> std::result::Result<Candidate, Refusal> {
        let name = Name::CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION;
        let plan = Desc::new(api, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        let plan = target.plan(plan)?.set(name, Values::Chars(text))?.finalize()?;
        let workspace = plan.int(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        if !r.tag.ends_with(&workspace_tag(workspace)) {
            return Err(format!("a workspace of {workspace} bytes"));
        }
        Ok(Candidate { plan, workspace: workspace.max(0) as u64, tag: r.tag.clone() })
    };
    plan().inspect_err(|why| tracing::debug!("a saved plan of cuDNN is of no use: {why}")).ok()
}

/// The candidate of a tag. Of all configurations those of its engine alone become plans.
pub(super) fn tagged(
    api: &'static Cudnn,
    graph: &Desc,
    target: &Target,
    wanted: &Wanted,
    tag: &str,
) -> Option<Candidate> {
    for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
        for config in configurations(api, graph, target, mode).unwrap_or_default() {
            let kind = Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR;
            let engine = config.list(Name::CUDNN_ATTR_ENGINECFG_ENGINE, kind, 1).ok()?.pop()?;
            let number = engine.int(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX).ok()?;
            if !tag.starts_with(&engine_tag(number)) {
                continue;
            }
            match candidate(api, &config, target, wanted) {
                Ok(c) if c.tag == tag => return Some(c),
                _ => {}
            }
        }
    }
    None
}

/// How the tag of a candidate begins.
fn engine_tag(number: i64) -> String {
    format!("engine {number}, ")
}

/// How it ends.
fn workspace_tag(bytes: i64) -> String {
    format!("workspace {bytes}")
}

/// Which engines may run a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// f32 operands are multiplied as they are: no engine that rounds them.
    pub exact: bool,
    /// No engine whose result differs from run to run.
    pub deterministic: bool,
}

pub(super) fn configurations(
    api: &'static Cudnn,
    graph: &Desc,
    target: &Target,
    mode: Mode,
) -> std::result::Result<Vec<Desc>, Refusal> {
    let heuristic = Desc::new(api, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
        .with(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)?
        .set(
            Name::CUDNN_ATTR_ENGINEHEUR_MODE,
            Values::Number(Type::CUDNN_TYPE_HEUR_MODE, mode as c_int),
        )?;
    let heuristic = target.heuristic(heuristic)?.finalize()?;
    heuristic.list(
        Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
        Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
        24,
    )
}

pub(super) fn candidate(
    api: &'static Cudnn,
    config: &Desc,
    target: &Target,
    wanted: &Wanted,
) -> std::result::Result<Candidate, Refusal> {
    let engine = config
        .list(Name::CUDNN_ATTR_ENGINECFG_ENGINE, Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1)?
        .pop()
        .ok_or("a configuration without an engine")?;
    let number = engine.int(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?;
    let notes =
        engine.numbers(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, Type::CUDNN_TYPE_NUMERICAL_NOTE)?;
    let has = |n: Note| notes.contains(&(n as c_int));
    if has(Note::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) {
        return Err(format!("engine {number} sums in less than f32"));
    }
    if wanted.deterministic && has(Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) {
        return Err(format!("engine {number} sums in an order that changes"));
    }
    // To f16, for all that is said, in which an operand above 65504 is infinite.
    if has(Note::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS) {
        return Err(format!("engine {number} stores its operands in fewer bits"));
    }
    if wanted.exact && has(Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE) {
        return Err(format!("engine {number} rounds f32 operands"));
    }
    // Both add and cancel larger numbers than the sum's terms.
    let transforms =
        has(Note::CUDNN_NUMERICAL_NOTE_FFT) || has(Note::CUDNN_NUMERICAL_NOTE_WINOGRAD);
    if wanted.exact && transforms {
        return Err(format!("engine {number} multiplies transforms of its operands"));
    }
    let plan = Desc::new(api, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?
        .with(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config)?;
    let plan = target.plan(plan)?.finalize()?;
    let workspace = plan.int(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
    if workspace > MOST_WORKSPACE {
        return Err(format!("engine {number} wants {} MiB of workspace", workspace >> 20));
    }
    let tag = engine_tag(number) + &workspace_tag(workspace);
    Ok(Candidate { plan, workspace: workspace.max(0) as u64, tag })
}

/// A way of running a graph.
pub struct Candidate {
    pub(super) plan: Desc,
    pub(super) workspace: u64,
    pub(super) tag: String,
}
