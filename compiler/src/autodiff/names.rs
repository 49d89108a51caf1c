//! Names of the model beside names of the training step.

use super::spec::TrainSpec;
use crate::diagnostic::{Diagnostic, Result};
use crate::ir::{Graph, NodeId, Var, VarRole};
use crate::ops::dropout::{BATCH_VAR, SEED_VAR};
use std::collections::BTreeSet;

/// What the step finds again by name: the loss and the machinery.
fn is_of_the_step(name: &str) -> bool {
    name == "loss" || name.starts_with("loss.") || name.starts_with("machine.")
}

/// Renames the model's nodes that have names by which the step finds its own, `loss` to
/// `model.loss`. Variables keep their names, by which weight files know them.
pub fn give_way(g: &mut Graph) {
    let own: Vec<NodeId> =
        g.nodes().filter(|(_, n)| is_of_the_step(&n.name)).map(|(id, _)| id).collect();
    for id in own {
        let name = format!("model.{}", g.node(id).name);
        g.rename(id, name);
    }
    set_apart(g, 0);
}

/// Numbers the names of the nodes from the `from`-th on that an earlier node has: what the step
/// adds gives way to the model's own names.
pub fn set_apart(g: &mut Graph, from: usize) {
    let mut known: BTreeSet<String> = g.nodes().map(|(_, n)| n.name.clone()).collect();
    let mut seen = BTreeSet::new();
    let twice: Vec<NodeId> = g
        .nodes()
        .filter(|(id, n)| !seen.insert(n.name.as_str()) && id.0 as usize >= from)
        .map(|(id, _)| id)
        .collect();
    for id in twice {
        let base = g.node(id).name.clone();
        let name = (1..).map(|i| format!("{base}.{i}")).find(|n| known.insert(n.clone()));
        g.rename(id, name.expect("some number is free"));
    }
}

/// Names of the variables that the step keeps for a parameter.
fn of_the_parameter(name: &str, spec: &TrainSpec) -> Vec<String> {
    let mut own = spec.optimizer.states().iter().map(|s| state(name, s)).collect::<Vec<_>>();
    if spec.accumulate > 1 {
        own.push(accumulator(name));
    }
    if spec.ema.is_some() {
        own.push(ema(name));
    }
    own
}

/// The variable of an optimizer's state, such as `momentum`.
pub fn state(parameter: &str, what: &str) -> String {
    format!("{parameter}.{what}")
}

/// The variable that gradients of several batches are summed in.
pub fn accumulator(parameter: &str) -> String {
    format!("{parameter}.accumulated")
}

/// The variable of the moving average.
pub fn ema(parameter: &str) -> String {
    format!("ema.{parameter}")
}

/// Checks that no variable of the model has the name of one that the step adds.
///
/// # Errors
/// P0404 where one has.
pub fn check_variables(g: &Graph, trained: &[&str], spec: &TrainSpec) -> Result<()> {
    let kept = trained.iter().flat_map(|name| of_the_parameter(name, spec));
    // The key of dropout's masks is the compiler's own already.
    let ours = |name: &String, v: &Var| {
        v.role == VarRole::Machine && [SEED_VAR, BATCH_VAR].contains(&name.as_str())
    };
    let machine = g.vars.iter().filter(|(name, v)| name.starts_with("machine.") && !ours(name, v));
    let machine = machine.map(|(name, _)| name.clone());
    match machine.chain(kept).find(|name| g.vars.contains_key(name)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("the training step has a variable `{name}` of its own");
            Err(Diagnostic::error("P0404", message)
                .help("give the model's parameter of that name another one, in the weights too")
                .into())
        }
    }
}
