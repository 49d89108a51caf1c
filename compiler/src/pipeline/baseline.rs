//! Plans of systems with fixed rules, through the same kernels and prices.

use crate::cost::Prices;
use crate::diagnostic::Result;
use crate::egraph::{self, Outcome, Prefer, rules};
use crate::frontend::recipe::{Baseline, Policy, System};
use crate::ir::{self, Graph, Node, ValueId};
use crate::ops::{Lowering, NumericClass, Op};
use crate::precision::baselines::{self, Marks, addmm, autocast, grappler};
use crate::precision::{self, PrecisionOptions};
use crate::simplify;
use precast_plan::{Candidate, DType, Decision, Target};
use std::collections::BTreeSet;

/// A baseline's joint graph, formats on every value, casts in place.
pub struct Built {
    pub graph: Graph,
    marks: Marks,
    half: DType,
}

/// Builds a baseline from the forward graph with its loss; `joint` differentiates and appends the
/// update.
///
/// # Errors
/// P0503 where the target lacks the format; what `joint` finds wrong.
///
/// # Panics
/// Where the graph built does not verify.
pub fn build(
    forward: &Graph,
    baseline: Baseline,
    target: &Target,
    joint: &dyn Fn(Graph, ValueId) -> Result<Graph>,
) -> Result<Built> {
    egraph::demand(target, baseline.half)?;
    // Batched products over one matrix become one product, as frameworks multiply them. The rest
    // of the e-graph's structure (fused gradients, scale motion) is ours alone.
    let options = PrecisionOptions::new(Policy::F32);
    let rules = rules::before_gradients();
    let forward = egraph::restructure_with(forward, &options, target, rules, Prefer::Cheap).graph;
    let loss = |g: &Graph| g.result("loss").expect("the loss is attached");
    let (graph, marks) = match baseline.system {
        System::Grappler => {
            let g = simplify::simplify(&joint(forward.clone(), loss(&forward))?)?;
            grappler::grappler(&g, baseline.half)
        }
        System::TorchCuda | System::TorchCpu | System::All => {
            let (g, marks) = autocast::autocast(&forward, baseline);
            let loss = loss(&g);
            (joint(g, loss)?, marks)
        }
    };
    let graph = simplify::simplify(&baselines::retype(&graph, &marks))?;
    let mut graph = addmm::fuse_biases(&graph);
    // What a person allows is allowed whatever the rules, as PyTorch's `allow_tf32` is.
    precision::tf32::mark(&mut graph, &BTreeSet::new(), &Prices { target }, false);
    if let Err(e) = ir::verify::verify(&graph) {
        panic!("a baseline's graph does not verify:\n{e}");
    }
    Ok(Built { graph, marks, half: baseline.half })
}

impl Built {
    /// Puts what is known of the baseline beside the f32 plan that `outcome` holds.
    pub fn describe(
        &self,
        outcome: &mut Outcome,
        policy: Policy,
        target: &Target,
        predicted_ns: f64,
        scaled: bool,
    ) {
        let note = match scaled {
            true => "fixed rules, with loss scale",
            false => "fixed rules",
        };
        outcome.candidates.push(Candidate {
            name: policy.name().into(),
            predicted_ns,
            legal: true,
            note: note.into(),
        });
        let f32_ns = outcome.predicted_ns;
        outcome.choice = format!(
            "{} was asked for: {} on {}, against {} in f32",
            policy.name(),
            egraph::duration(predicted_ns),
            target.name,
            egraph::duration(f32_ns)
        );
        (outcome.casts, outcome.cast_elements) = egraph::count_casts(&self.graph);
        outcome.product_flops = egraph::product_flops(&self.graph);
        outcome.scaled = scaled;
        outcome.predicted_ns = predicted_ns;
        outcome.chosen = outcome.candidates.len() - 1;
        outcome.bound = None;
        outcome.rule_firings.clear();
        outcome.journal = self.journal(target);
        outcome.cast_journal = self.cast_journal(target);
    }

    fn journal(&self, target: &Target) -> Vec<Decision> {
        let g = &self.graph;
        let works = |n: &&Node| {
            let free = matches!(n.op.lowering(), Lowering::Leaf | Lowering::View);
            !free && !matches!(n.op, Op::Cast(_))
        };
        g.nodes()
            .map(|(_, n)| n)
            .filter(works)
            .map(|n| Decision {
                op: n.name.clone(),
                chosen: egraph::formats(g, n),
                reason: baselines::reason(g, n, &self.marks).into(),
                cost_ns: self.price(n, target),
                rejected: vec![],
            })
            .collect()
    }

    /// Casts are kernels of their own: a start, and both formats moved.
    fn cast_journal(&self, target: &Target) -> Vec<Decision> {
        let prices = Prices { target };
        let records = precision::casts::records(&self.graph).into_iter();
        records
            .map(|r| {
                let n = r.elements as usize;
                let cost = target.launch_ns + prices.traffic(n, r.from) + prices.traffic(n, r.to);
                r.decision(cost, None, "the system's rules ask for it")
            })
            .collect()
    }

    fn price(&self, n: &Node, target: &Target) -> f64 {
        let (g, prices) = (&self.graph, Prices { target });
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        let multiply = match n.op.class() {
            NumericClass::Product => {
                let format = if x[0].dtype == self.half { self.half } else { DType::F32 };
                prices.product(&n.op, &x, &y, format).unwrap_or(0.0)
            }
            _ => 0.0,
        };
        prices.work(&n.op, &x, &y) + target.launch_ns + multiply
    }
}
