//! What a description is worth: networks that are predicted with it and with the shipped one, beside
//! what their steps take.

use super::networks::{Folder, Network, TRIED, batch, plan};
use crate::failure::Outcome;
use precast_plan::{Plan, Target};
use precast_runtime::{ModelWeights, Session};
use serde::Serialize;
use std::path::Path;

/// A step of a plan: predicted, and the median of those measured, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    pub predicted_ns: f64,
    pub measured_ns: f64,
}

impl Step {
    /// By how much a prediction is off, as a share: 0.25 is a quarter too much, or a fifth too little.
    pub fn error(self) -> f64 {
        let ratio = self.predicted_ns / self.measured_ns;
        ratio.max(1.0 / ratio) - 1.0
    }
}

/// One network, planned with the shipped description and with the new one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub network: &'static str,
    pub shipped: Step,
    pub calibrated: Step,
}

/// Predictions nearer than this to what was measured are good; that another is nearer still is luck.
pub const GOOD: f64 = 0.2;
/// Steps that differ by less take the same time, as far as a clock can tell.
const SAME: f64 = 0.1;

impl Row {
    /// Why a network speaks against the new description.
    pub fn objection(&self) -> Option<String> {
        let percent = |x: f64| format!("{:.0} %", x * 100.0);
        let (old, new) = (self.shipped, self.calibrated);
        if new.error() > GOOD && new.error() > old.error() {
            return Some(format!(
                "{}: its prediction is off by {}, that of the shipped table by {}",
                self.network,
                percent(new.error()),
                percent(old.error())
            ));
        }
        let slower = new.measured_ns / old.measured_ns - 1.0;
        (slower > SAME).then(|| {
            format!("{}: the plan made with it is {} slower", self.network, percent(slower))
        })
    }
}

/// Steps of a plan in one turn.
const TURN: u32 = 5;

/// Plans every network with both descriptions, the shipped one first, and measures `steps` steps of the
/// plans in turns.
pub fn validate(
    tables: [&Target; 2],
    threads: usize,
    steps: u32,
    progress: &mut dyn FnMut(&str),
) -> Outcome<Vec<Row>> {
    let folder = Folder::new()?;
    TRIED
        .iter()
        .map(|network| {
            progress(network.name);
            row(network, tables, (threads, steps), &folder.0)
        })
        .collect()
}

fn row(network: &Network, tables: [&Target; 2], how: (usize, u32), folder: &Path) -> Outcome<Row> {
    let [shipped, calibrated] =
        [plan(network, tables[0], "auto", folder)?, plan(network, tables[1], "auto", folder)?];
    // The same plan takes the same time, whatever was predicted of it.
    let plans = match shipped.digest() == calibrated.digest() {
        true => vec![&shipped],
        false => vec![&shipped, &calibrated],
    };
    let ns = measure(&plans, network.ids, how, folder)?;
    let step =
        |plan: &Plan, ns: f64| Step { predicted_ns: plan.summary.predicted_ns, measured_ns: ns };
    Ok(Row {
        network: network.name,
        shipped: step(&shipped, ns[0]),
        calibrated: step(&calibrated, *ns.last().expect("there is one")),
    })
}

/// Nanoseconds of a step of every plan, as it is when nothing else runs.
fn measure(
    plans: &[&Plan],
    ids: u64,
    (threads, steps): (usize, u32),
    folder: &Path,
) -> Outcome<Vec<f64>> {
    let mut runs = vec![];
    for &plan in plans {
        let weights = ModelWeights::for_plan(plan, folder, None)?;
        let options = precast_runtime::Options { threads, ..Default::default() };
        let session = Session::new(plan.clone(), &weights, &options)?;
        let batch = batch(&session.wanted(), ids);
        runs.push((session, batch, vec![]));
    }
    for _ in 0..steps.div_ceil(TURN) {
        for (session, batch, times) in &mut runs {
            // The first warms the caches.
            session.step(std::slice::from_ref(batch))?;
            let mut turn = vec![];
            for _ in 0..TURN {
                turn.push(session.step(std::slice::from_ref(batch))?.seconds * 1e9);
            }
            times.push(median(turn));
        }
    }
    Ok(runs.into_iter().map(|(_, _, times)| settled(times)).collect())
}

/// # Panics
/// If there are none.
pub fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The middle one of the three lowest turns: other work slows a turn down, and nothing speeds one up.
///
/// # Panics
/// If there are none.
pub fn settled(mut turns: Vec<f64>) -> f64 {
    turns.sort_by(f64::total_cmp);
    turns.truncate(3);
    turns[turns.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::super::networks::FITTED;
    use super::*;

    fn row(shipped: (f64, f64), calibrated: (f64, f64)) -> Row {
        let step = |(predicted_ns, measured_ns)| Step { predicted_ns, measured_ns };
        Row { network: "net", shipped: step(shipped), calibrated: step(calibrated) }
    }

    #[test]
    fn a_table_that_predicts_worse_or_plans_slower_is_objected_to() {
        let said = |r: Row| r.objection().unwrap_or_default();
        // Both good, whichever is nearer.
        assert_eq!(said(row((100.0, 100.0), (115.0, 100.0))), "");
        // Not good, yet better than before.
        assert_eq!(said(row((50.0, 100.0), (70.0, 100.0))), "");
        // Not good, and worse.
        let worse = said(row((70.0, 100.0), (50.0, 100.0)));
        assert_eq!(worse, "net: its prediction is off by 100 %, that of the shipped table by 43 %");
        assert_ne!(said(row((110.0, 100.0), (125.0, 100.0))), "");
        // Too much is as far off as too little.
        assert_eq!(Step { predicted_ns: 200.0, measured_ns: 100.0 }.error(), 1.0);
        // A choice that costs time.
        assert_eq!(
            said(row((100.0, 100.0), (111.0, 111.0))),
            "net: the plan made with it is 11 % slower"
        );
        assert_eq!(said(row((100.0, 100.0), (108.0, 108.0))), "");
    }

    #[test]
    fn every_network_is_planned_and_runs() {
        let shipped = Target::shipped("cpu-generic").expect("it is shipped");
        let folder = Folder::new().unwrap_or_else(|_| panic!("a folder"));
        for network in TRIED.iter().chain(&FITTED) {
            let plan = plan(network, &shipped, "auto", &folder.0).unwrap_or_else(|e| {
                e.report(false);
                panic!("{}", network.name)
            });
            let weights = ModelWeights::for_plan(&plan, &folder.0, None).expect("drawn");
            let options = precast_runtime::Options { threads: 1, ..Default::default() };
            let mut session = Session::new(plan, &weights, &options).expect("a session");
            let batch = batch(&session.wanted(), network.ids);
            let report = session.step(&[batch]).unwrap_or_else(|e| panic!("{}: {e}", network.name));
            assert!(report.loss.is_finite(), "{}", network.name);
        }
    }
}
