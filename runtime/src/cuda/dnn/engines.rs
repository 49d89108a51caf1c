//! Engines that may run a graph, and the execution plans made of them.

use super::Target;
use super::api::Cudnn;
use super::desc::{Desc, Kind, Name, Refusal, Values};
use cudarc::cudnn::sys as dnn;
use dnn::cudnnBackendAttributeType_t as Type;
use dnn::cudnnBackendHeurMode_t as Mode;
use dnn::cudnnBackendNumericalNote_t as Note;
use precast_plan::units;
use std::collections::BTreeSet;
use std::ffi::c_int;
use std::fmt::Write as _;

/// Most knobs that a configuration sets; cuDNN 9 has 44 kinds of them.
const KNOBS: usize = 64;

/// What heuristics propose: an engine, and values of its knobs, which choose among its kernels.
pub(super) struct Config {
    desc: Desc,
    engine: Desc,
    number: i64,
    /// What tells it from the others of its graph: `engine 5`, `engine 5 knobs 2=11 28=1`.
    pub(super) name: String,
}

impl Config {
    fn new(desc: Desc) -> std::result::Result<Config, Refusal> {
        let engine = desc
            .list(Name::CUDNN_ATTR_ENGINECFG_ENGINE, Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1)?
            .pop()
            .ok_or("a configuration without an engine")?;
        let number = engine.int(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?;
        let mut name = format!("engine {number}");
        let mut knobs = knobs(&desc)?;
        knobs.sort_unstable();
        for (i, (kind, value)) in knobs.into_iter().enumerate() {
            let _ = write!(name, "{}{kind}={value}", if i == 0 { " knobs " } else { " " });
        }
        Ok(Config { desc, engine, number, name })
    }

    /// Whether its engine compiles the kernel at run time.
    pub(super) fn compiles(&self) -> bool {
        let note =
            dnn::cudnnBackendBehaviorNote_t::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as c_int;
        self.engine
            .numbers(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, Type::CUDNN_TYPE_BEHAVIOR_NOTE)
            .is_ok_and(|notes| notes.contains(&note))
    }
}

/// Kind and value of every knob that a configuration sets.
fn knobs(config: &Desc) -> std::result::Result<Vec<(c_int, i64)>, Refusal> {
    let kind = Kind::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR;
    let choices = config.list(Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, kind, KNOBS)?;
    let knob = |choice: Desc| {
        let kind = Type::CUDNN_TYPE_KNOB_TYPE;
        let kind = choice.number(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, kind)?;
        Ok((kind, choice.int(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE)?))
    };
    choices.into_iter().map(knob).collect()
}

/// The order in which configurations are tried that cuDNN lists best first: every engine with the
/// knobs that are best for it, and then, where there is room, the other knobs of the best engines. For
/// a convolution on an H200 cuDNN 9.19 lists 24, of which the best dozen have one engine, with other
/// tiles and clusters; for attention four, of two engines.
pub(super) fn engines_first(list: Vec<Config>) -> impl Iterator<Item = Config> {
    let mut seen = BTreeSet::new();
    let (first, others): (Vec<_>, Vec<_>) = list.into_iter().partition(|c| seen.insert(c.number));
    first.into_iter().chain(others)
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
/// It wants at most so many bytes of workspace, or there is none.
pub(super) fn saved(
    api: &'static Cudnn,
    target: &Target,
    r: &Remembered,
    most: u64,
) -> Option<Candidate> {
    let text = r.plan.as_deref()?;
    let plan = || -> std::result::Result<Candidate, Refusal> {
        let name = Name::CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION;
        let plan = Desc::new(api, Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        let plan = target.plan(plan)?.set(name, Values::Chars(text))?.finalize()?;
        let workspace = plan.int(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        if !r.tag.ends_with(&workspace_tag(workspace)) || workspace > bytes(most) {
            return Err(format!("a workspace of {workspace} bytes"));
        }
        Ok(Candidate { plan, workspace: workspace.max(0) as u64, tag: r.tag.clone() })
    };
    plan().inspect_err(|why| tracing::debug!("a saved plan of cuDNN is of no use: {why}")).ok()
}

/// The candidate of a tag. Of all configurations that one alone becomes a plan.
pub(super) fn tagged(
    api: &'static Cudnn,
    graph: &Desc,
    target: &Target,
    wanted: &Wanted,
    most: u64,
    tag: &str,
) -> Option<Candidate> {
    for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
        for config in configurations(api, graph, target, mode).unwrap_or_default() {
            if !tag.starts_with(&engine_tag(&config.name)) {
                continue;
            }
            match candidate(api, &config, target, wanted, most) {
                Ok(c) if c.tag == tag => return Some(c),
                _ => {}
            }
        }
    }
    None
}

/// How the tag of a candidate begins, which names its configuration.
pub(super) fn engine_tag(name: &str) -> String {
    format!("{name}, ")
}

/// How it ends.
fn workspace_tag(bytes: i64) -> String {
    format!("workspace {bytes}")
}

/// Which engines may run a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Candidates that may compile their kernel, which takes cuDNN one to three seconds each; plans of
    /// the others take it microseconds.
    pub compiled: usize,
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
) -> std::result::Result<Vec<Config>, Refusal> {
    let heuristic = Desc::new(api, Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
        .with(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)?
        .set(
            Name::CUDNN_ATTR_ENGINEHEUR_MODE,
            Values::Number(Type::CUDNN_TYPE_HEUR_MODE, mode as c_int),
        )?;
    let heuristic = target.heuristic(heuristic)?.finalize()?;
    let kind = Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
    let list = heuristic.list(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, kind, PROPOSALS)?;
    let config = |d| {
        Config::new(d).inspect_err(|why| tracing::debug!("a configuration of cuDNN: {why}")).ok()
    };
    Ok(list.into_iter().filter_map(config).collect())
}

/// Configurations that are looked at, of one mode of the heuristics.
const PROPOSALS: usize = 24;

/// A number of bytes as cuDNN counts them.
fn bytes(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The plan of a configuration that wants at most so many bytes of workspace.
pub(super) fn candidate(
    api: &'static Cudnn,
    config: &Config,
    target: &Target,
    wanted: &Wanted,
    most: u64,
) -> std::result::Result<Candidate, Refusal> {
    let Config { engine, number, .. } = config;
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
        .with(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &config.desc)?;
    let plan = target.plan(plan)?.finalize()?;
    let workspace = plan.int(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
    if workspace > bytes(most) {
        return Err(format!(
            "engine {number} wants {} of workspace, and it may have {}",
            units::bytes(workspace as u64),
            units::bytes(most)
        ));
    }
    let tag = engine_tag(&config.name) + &workspace_tag(workspace);
    Ok(Candidate { plan, workspace: workspace.max(0) as u64, tag })
}

/// A way of running a graph.
pub struct Candidate {
    pub(super) plan: Desc,
    pub(super) workspace: u64,
    pub(super) tag: String,
}
