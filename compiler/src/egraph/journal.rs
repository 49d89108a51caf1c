//! The reasons: one decision for every product, and for every value that a reader might expect in
//! another format.

use super::Plan;
use crate::cost::Prices;
use crate::ir::{Graph, Node};
use crate::ops::{Lowering, NumericClass, Op};
use crate::precision::{self, Policy};
use precast_plan::units::time;
use precast_plan::{DType, Decision, Precision, Rejected, Target};
use std::collections::BTreeMap;

/// Of a candidate whose formats go by what is legal and not by cost.
pub const FORCED: &str = "every legal product";

/// One sentence on the candidates.
pub fn choice(policy: Policy, plans: &[Plan], best: usize, target: &Target) -> String {
    let throughout = |i: usize| format!("{} throughout, {}", plans[i].name, time(plans[i].ns));
    let price = |p: &Plan| format!("{} at {}", p.name, time(p.ns));
    if policy != Policy::Auto {
        let mut s =
            format!("{} was asked for: {} on {}", policy.name(), time(plans[best].ns), target.name);
        if best > 0 {
            s += &format!(", against {} in f32", time(plans[0].ns));
        }
        return s;
    }
    if plans.len() == 1 {
        return format!("f32 at {}: {} has no 16-bit products", time(plans[0].ns), target.name);
    }
    let forced = plans.iter().position(|p| p.note == FORCED);
    let plans = &plans[..forced.unwrap_or(plans.len())];
    let all: Vec<String> = plans.iter().map(price).collect();
    let compared = format!("compared {} on {}", all.join(", "), target.name);
    if best == 0 {
        let lead = plans[1..].iter().map(|p| 1.0 - p.ns / plans[0].ns).fold(f64::MIN, f64::max);
        if lead > 0.0 {
            format!("{compared}: FP32, since mixed precision would gain only {:.1} %", lead * 100.0)
        } else if let Some(forced) = forced {
            let why = "FP32, since no operation gains what its casts cost here";
            format!("{compared}: {why}; with {}", throughout(forced))
        } else {
            format!("{compared}: FP32, since mixed precision would be slower here")
        }
    } else {
        let gain = plans[0].ns / plans[best].ns;
        format!("{compared}: {}, {gain:.2} times as fast as FP32", plans[best].name)
    }
}

/// Why every operation is what it is.
pub fn decisions(plan: &Plan, prices: &Prices) -> Vec<Decision> {
    let mut out = Vec::new();
    let (g, labels) = (&plan.structured.graph, &plan.labels);
    for (id, n) in g.nodes() {
        if matches!(n.op.lowering(), Lowering::Leaf | Lowering::View) {
            continue;
        }
        let operands = plan.model.operands(labels, id);
        let signature = signature(g, n, plan, operands, plan.model.bias(labels, id));
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        let half = plan.legal.half;
        let mut cost = prices.work(&n.op, &x, &y) + prices.target.launch_ns;
        let mut rejected = Vec::new();
        let reason = if n.op.class() == NumericClass::Product {
            let format = operands.expect("a product has an operand format");
            cost += prices.product(&n.op, &x, &y, format).unwrap_or(0.0);
            let other = if format == half { DType::F32 } else { half };
            let why = plan.legal.product[id.0 as usize].clone();
            let illegal = other == half && why.is_some();
            rejected.push(Rejected {
                what: format!("operands in {other}"),
                extra_ns: if illegal { None } else { plan.model.flip(labels, id) },
                why: match (&why, other == half) {
                    (Some(why), true) => why.clone(),
                    _ if plan.name == "f32" => "the whole plan is f32".into(),
                    _ => "with the casts that its operands and readers would then need".into(),
                },
            });
            match (&why, format == half) {
                (Some(why), _) => why.clone(),
                (None, true) if plan.note != "by cost" => {
                    "the policy asks for it and it is legal".into()
                }
                (None, true) => format!("cheaper in {half}, casts included"),
                (None, false) if plan.name == "f32" => "the f32 plan was chosen".into(),
                (None, false) => format!("cheaper in f32: {half} would not pay for its casts"),
            }
        } else {
            let v = n.outputs[0];
            match &plan.legal.store[v.0 as usize] {
                Some(why) => why.to_string(),
                None if plan.model.format(labels, v) == Some(half) => {
                    format!("its readers take {half}, and half the bytes move")
                }
                None if plan.name == "f32" => "the f32 plan was chosen".into(),
                None => "not stored, or read in f32; f32 inside".into(),
            }
        };
        out.push(Decision {
            op: n.name.clone(),
            chosen: signature,
            reason,
            cost_ns: cost,
            rejected,
        });
    }
    out
}

/// Writes TF32 and FP8 into the decisions of a plan's products, and why the others have neither.
pub fn precisions(plan: &Plan, prices: &Prices, journal: &mut [Decision]) {
    let g = &plan.placed;
    let nodes: BTreeMap<&str, &Node> = g.nodes().map(|(_, n)| (n.name.as_str(), n)).collect();
    let forced = plan.note != "by cost";
    for d in journal {
        let Some(n) = nodes.get(d.op.as_str()).filter(|n| n.op.class() == NumericClass::Product)
        else {
            continue;
        };
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        let results = d.chosen.split_once("->").map_or(d.chosen.as_str(), |s| s.1).to_string();
        let now = prices.multiply(&n.op, &x, &y, Precision::of(x[0].dtype, n.op.math()));
        let cost = prices.work(&n.op, &x, &y) + prices.target.launch_ns + now.unwrap_or(0.0);
        let alternative = |what: &str, extra_ns, why: &str| Rejected {
            what: format!("operands in {what}"),
            extra_ns,
            why: why.into(),
        };
        if let Some(gain) = plan.tf32.taken.get(&d.op) {
            d.chosen = format!("tf32,tf32->{results}");
            d.reason = match gain {
                g if *g > 0.0 => "f32 rounded to tf32 on its way in, which is faster".into(),
                _ => "the policy asks for tf32: f32 rounded on its way in".into(),
            };
            d.cost_ns = cost;
            let extra = (*gain > 0.0).then_some(*gain);
            d.rejected.insert(0, alternative("f32", extra, "the same product, exact"));
        } else if let Some(why) = plan.tf32.refused.get(&d.op) {
            d.rejected.push(alternative("tf32", None, why));
        }
        if let Some(gain) = plan.fp8.taken.get(&d.op) {
            let before = format!("{}", plan.legal.half);
            d.chosen = format!("{},{}->{results}", x[0].dtype, x[1].dtype);
            d.reason = match forced {
                true => "the policy asks for fp8 and it is legal".into(),
                false => "cheaper in fp8, its share of scales and rounding included".into(),
            };
            d.cost_ns = cost;
            let why = "the same product, without scales and rounding to find and make";
            d.rejected.insert(0, alternative(&before, (*gain > 0.0).then_some(*gain), why));
        } else if let Some(why) = plan.fp8.refused.get(&d.op) {
            d.rejected.push(alternative("fp8", None, why));
        }
    }
}

/// Who asked for every cast, what it costs, and what doing without it would cost.
pub fn casts(plan: &Plan, prices: &Prices) -> Vec<Decision> {
    let (g, placed) = (&plan.structured.graph, &plan.placed);
    let by_name: BTreeMap<&str, &Node> = g.nodes().map(|(_, n)| (n.name.as_str(), n)).collect();
    let casts = placed.nodes().map(|(_, n)| n).filter(|n| matches!(n.op, Op::Cast(_)));
    casts
        .zip(precision::casts::records(placed))
        .map(|(n, record)| {
            let x = placed.value(n.inputs[0]);
            // The value as it was before casts were placed; operations keep their names.
            let v =
                by_name.get(placed.node(x.node).name.as_str()).map(|n| n.outputs[x.index as usize]);
            let price = v.and_then(|v| plan.model.cast_price(&plan.labels, v));
            let extra = v.and_then(|v| plan.model.without_cast(&plan.labels, v));
            if Precision::from(record.to) == Precision::Fp8 {
                let bytes = record.bytes() as f64 / prices.target.bandwidth_gbs;
                let cost = prices.target.launch_ns + bytes;
                return record.decision(cost, None, "FP8 products read it, with its scale");
            }
            let forced = plan.note == FORCED;
            let why = match extra {
                Some(extra) if extra < 0.0 && forced => {
                    "with its readers in the format that is stored, which the policy rules out"
                }
                Some(_) => "with its readers in the format that is stored",
                None => "its readers may not take the format that is stored",
            };
            record.decision(price.unwrap_or(0.0), extra, why)
        })
        .collect()
}

/// `bf16,bf16->f32` of a node whose values have their formats.
pub fn formats(g: &Graph, n: &Node) -> String {
    let list = |values: &[crate::ir::ValueId]| {
        let names: Vec<String> = values.iter().map(|&v| g.ty(v).dtype.to_string()).collect();
        names.join(",")
    };
    format!("{}->{}", list(&n.inputs), list(&n.outputs))
}

/// `bf16,bf16->f32`
fn signature(
    g: &Graph,
    n: &Node,
    plan: &Plan,
    operands: Option<DType>,
    bias: Option<(usize, DType)>,
) -> String {
    let mixed = crate::precision::uniform_operands(&n.op, n.inputs.len());
    let stored =
        |v: &crate::ir::ValueId| plan.model.format(&plan.labels, *v).unwrap_or(g.ty(*v).dtype);
    let inputs: Vec<String> = n
        .inputs
        .iter()
        .enumerate()
        .map(|(i, v)| match (operands, bias) {
            (Some(d), _) if mixed.contains(&i) => d.to_string(),
            (_, Some((at, d))) if at == i => d.to_string(),
            _ => stored(v).to_string(),
        })
        .collect();
    let outputs: Vec<String> = n.outputs.iter().map(|v| stored(v).to_string()).collect();
    format!("{}->{}", inputs.join(","), outputs.join(","))
}
