//! Convolutions and attention that a library runs as graphs of its own.

use super::cache::Cache;
use super::dnn::{CUDNN_VARIABLE, Steps};
use super::driver::{Context, Stream};
use super::launch::{Lowered, Place};
use super::lower::Graph;
use crate::error::Result;
use precast_plan::units;
use precast_plan::{Kernel, Plan};
use std::env;
use std::sync::Arc;

/// A library for convolutions and attention.
pub trait Library: Send {
    /// Before all steps of a plan are lowered, for the first time or anew: builds their graphs.
    fn begin(&mut self, plan: &Plan);

    /// Lowers a step, its epilogue included; the last task is [`super::launch::Task::Graph`] or
    /// follows one.
    ///
    /// # Errors
    /// If the library fails rather than declines.
    fn lower(&mut self, plan: &Plan, kernel: &Kernel, out: &mut Lowered) -> Result<Graph>;

    /// Bytes of workspace that all graphs share: once they are bound, those of what was chosen.
    fn workspace(&self) -> u64;

    /// The device has this many bytes for the workspace: graphs that are lowered from now on want no
    /// more. `false` where that is no less than they want already.
    fn restrict(&mut self, free: u64) -> bool;

    /// Moves the workspace of graphs that are bound.
    fn place(&mut self, workspace: u64);

    /// Puts the graphs on their addresses and runs each once, which overwrites their results.
    /// `false` where some cannot be run: lowered anew, their steps become something else.
    ///
    /// # Errors
    /// If the device fails.
    fn bind(
        &mut self,
        workspace: u64,
        address: &dyn Fn(Place) -> u64,
        stream: &Stream,
    ) -> Result<bool>;

    /// Puts a graph into the stream it was bound with.
    ///
    /// # Errors
    /// If the library refuses.
    fn run(&self, graph: usize) -> Result<()>;
}

/// The library of a device, or why there is none.
pub struct Graphs {
    library: std::result::Result<Box<dyn Library>, String>,
    /// What is said where memory for workspaces is short.
    notice: Option<String>,
}

impl Graphs {
    /// The library for a device. `captured`: whether its graphs will run in one that was captured.
    pub fn new(context: &Arc<Context>, cache: &Cache, captured: bool) -> Graphs {
        if env::var_os(CUDNN_VARIABLE).is_some_and(|v| v == "0") {
            return Graphs { library: Err(format!("{CUDNN_VARIABLE}=0")), notice: None };
        }
        let steps = Steps::new(context, cache.clone(), captured);
        let library = steps.map(|s| Box::new(s) as _).map_err(|e| e.message);
        Graphs { library, notice: None }
    }

    /// As [`Library::begin`].
    pub fn begin(&mut self, plan: &Plan) {
        if let Ok(library) = &mut self.library {
            library.begin(plan);
        }
    }

    /// As [`Library::lower`].
    ///
    /// # Errors
    /// As there.
    pub fn lower(&mut self, plan: &Plan, kernel: &Kernel, out: &mut Lowered) -> Result<Graph> {
        match &mut self.library {
            Ok(library) => library.lower(plan, kernel, out),
            Err(why) => Ok(Graph::No(why.clone())),
        }
    }

    /// As [`Library::workspace`].
    pub fn workspace(&self) -> u64 {
        self.library.as_ref().map_or(0, |l| l.workspace())
    }

    /// As [`Library::restrict`].
    pub fn restrict(&mut self, free: u64) -> bool {
        let wanted = units::bytes(self.workspace());
        let less = self.library.as_mut().is_ok_and(|l| l.restrict(free));
        if less {
            self.notice = Some(format!(
                "memory of the device is short: cuDNN runs without engines that want more than {} \
                 of workspace; the most that one wants is {wanted}",
                units::bytes(free)
            ));
        }
        less
    }

    /// As [`Library::place`].
    pub fn place(&mut self, workspace: u64) {
        if let Ok(library) = &mut self.library {
            library.place(workspace);
        }
    }

    /// What people should know of how the graphs run.
    pub fn notice(&self) -> Option<&String> {
        self.notice.as_ref()
    }

    /// As [`Library::bind`].
    ///
    /// # Errors
    /// As there.
    pub fn bind(
        &mut self,
        workspace: u64,
        address: &dyn Fn(Place) -> u64,
        stream: &Stream,
    ) -> Result<bool> {
        self.library.as_mut().map_or(Ok(true), |l| l.bind(workspace, address, stream))
    }

    /// As [`Library::run`].
    ///
    /// # Errors
    /// As there.
    pub fn run(&self, graph: usize) -> Result<()> {
        match &self.library {
            Ok(library) => library.run(graph),
            Err(_) => unreachable!("no step was lowered to a graph"),
        }
    }
}
