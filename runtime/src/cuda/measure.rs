//! How long work takes on a device.

use super::driver::{Context, Event, Stream};
use crate::error::{Error, Result};
use std::cell::Cell;
use std::sync::Arc;

/// Seconds of one window, between two events: a hundred times what events resolve and what a first
/// launch adds.
const WINDOW: f64 = 200e-6;
/// Most runs in one window.
const RUNS: usize = 50;
/// Windows, of which the shortest counts: whatever disturbs a run makes it longer.
const WINDOWS: usize = 3;
/// Seconds of work before anything is measured, since an idle device runs at a lower clock; and the
/// most runs that this takes.
const WARM: f64 = 30e-3;
const WARM_RUNS: usize = 200;

/// Measures candidates for work that a step will repeat.
///
/// Each is measured as the step will run it: where steps are captured, several runs of it as one graph,
/// so that what the host takes for a launch, which is longer than many kernels, does not count. Runs
/// follow each other without clearing the second-level cache. In a step much of what an operation
/// reads was written just before, so that neither a full nor an empty cache is what it will meet; all
/// candidates meet the same, they read the same bytes, and clearing the cache would need memory that a
/// large plan does not leave.
pub struct Watch {
    context: Arc<Context>,
    /// Steps will be captured.
    captured: bool,
    warm: Cell<bool>,
}

impl Watch {
    pub fn new(context: &Arc<Context>, captured: bool) -> Watch {
        Watch { context: context.clone(), captured, warm: Cell::new(false) }
    }

    /// Seconds of one run of `work`, which has run before. It takes six runs or a millisecond,
    /// whichever is longer. Where steps are captured, this captures it too.
    ///
    /// # Errors
    /// What `work` fails with, also while it is captured, or the device.
    pub fn time(&self, stream: &Stream, work: &dyn Fn() -> Result<()>) -> Result<f64> {
        let events = [Event::new(&self.context)?, Event::new(&self.context)?];
        let window = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
            events[0].record(stream)?;
            work()?;
            events[1].record(stream)?;
            events[1].wait()?;
            events[1].since(&events[0])
        };
        if !self.warm.replace(true) {
            let (mut seconds, mut runs) = (0.0, 0);
            while seconds < WARM && runs < WARM_RUNS {
                seconds += window(work)?;
                runs += 1;
            }
        }
        let runs = runs(window(work)?);
        let all = || (0..runs).try_for_each(|_| work());
        let graph = if self.captured { self.graph(stream, &all)? } else { None };
        let least = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
            // The first is not measured: a graph is sent to the device by it.
            work()?;
            (0..WINDOWS).try_fold(f64::INFINITY, |least, _| Ok(window(work)?.min(least)))
        };
        let seconds = match &graph {
            Some(graph) => least(&|| stream.replay(graph))?,
            None => least(&all)?,
        };
        Ok(seconds / runs as f64)
    }

    /// Whether `work`, which has run before, can be captured too, which a library may refuse alone.
    ///
    /// # Errors
    /// What it fails with.
    pub fn rehearse(&self, stream: &Stream, work: &dyn Fn() -> Result<()>) -> Result<()> {
        if !self.captured {
            return Ok(());
        }
        stream.record(work).map(drop).map_err(while_captured)
    }

    /// `None` where the driver has no room for the graph, which is not the work's fault.
    fn graph(
        &self,
        stream: &Stream,
        work: &dyn Fn() -> Result<()>,
    ) -> Result<Option<super::driver::Graph>> {
        let recorded = stream.record(work).map_err(while_captured)?;
        let graph = recorded.instantiate();
        Ok(graph.inspect_err(|e| tracing::debug!("measured without a graph: {e}")).ok())
    }
}

fn while_captured(e: Error) -> Error {
    let text = format!("while it is captured: {}", e.message);
    Error::new(e.code, text)
}

/// Runs in one window, where one takes so many seconds.
fn runs(seconds: f64) -> usize {
    // What is measured as no time at all is the shortest there is.
    if seconds > 0.0 { ((WINDOW / seconds).ceil() as usize).clamp(1, RUNS) } else { RUNS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_work_is_repeated_and_long_work_is_not() {
        assert_eq!([1.0, 300e-6, 200e-6, 150e-6, 20e-6].map(runs), [1, 1, 1, 2, 10]);
        assert_eq!([1e-6, 0.0, -1e-9, f64::MIN_POSITIVE].map(runs), [RUNS; 4]);
    }
}
