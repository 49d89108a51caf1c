//! From the steps of a plan to tasks.

use super::launch::{Facts, Launch, Lowered, Place, Source, Task};
use super::product::{self, Product};
use super::{kernels, text};
use crate::error::Result;
use precast_plan::{Access, Gemm, Kernel, Operand, Plan, Step as PlanStep};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What libraries do better than kernels of ours, where they are there.
pub trait Offers {
    /// Whether cuBLASLt runs a product.
    ///
    /// # Errors
    /// If the library fails rather than declines.
    fn product(&mut self, p: &Product) -> Result<Answer>;

    /// Lowers a convolution or attention to a library's graph, or says why there is none.
    ///
    /// # Errors
    /// If the library fails rather than declines.
    fn graph(&mut self, plan: &Plan, kernel: &Kernel, out: &mut Lowered) -> Result<Graph>;
}

/// Whether a library runs a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// It does not, for this reason.
    No(String),
}

/// What became of a step that a graph might run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Graph {
    /// The tasks are in place.
    Lowered,
    /// Kernels of ours run the step, for this reason.
    No(String),
}

/// No library at all: every step becomes kernels of ours, but products, which cuBLASLt is taken to
/// run. For looking at texts without a device.
pub struct Assumed;

impl Offers for Assumed {
    fn product(&mut self, _: &Product) -> Result<Answer> {
        Ok(Answer::Yes)
    }

    fn graph(&mut self, _: &Plan, _: &Kernel, _: &mut Lowered) -> Result<Graph> {
        Ok(Graph::No("no library is asked".into()))
    }
}

/// A step and its tasks.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: String,
    pub lowered: Lowered,
}

/// A plan's steps, lowered.
#[derive(Clone, Debug, Default)]
pub struct LoweredPlan {
    /// `micro`, `update`, `eval`.
    pub phases: [Vec<Step>; 3],
    /// What [`Task::Product`] counts.
    pub products: Vec<Product>,
    /// Bytes of the scratch region.
    pub scratch: u64,
    /// What people should know: fallbacks, one line each.
    pub notices: Vec<String>,
}

impl LoweredPlan {
    /// Every launch, in order.
    pub fn launches(&self) -> impl Iterator<Item = &Launch> {
        let tasks = self.phases.iter().flatten().flat_map(|s| &s.lowered.tasks);
        tasks.filter_map(|t| match t {
            Task::Launch(l) => Some(l),
            _ => None,
        })
    }

    /// Every text, by the name of its kernel, with the prelude in front: what NVRTC compiles, with
    /// [`text::OPTIONS`].
    pub fn texts(&self) -> BTreeMap<String, Arc<Source>> {
        let mut all: BTreeMap<String, Arc<Source>> = BTreeMap::new();
        for l in self.launches() {
            all.entry(l.source.entry.clone()).or_insert_with(|| {
                let text = [text::PRELUDE, "\n", &l.source.text].concat();
                Arc::new(Source { text, ..(*l.source).clone() })
            });
        }
        all
    }
}

/// Lowers a valid plan.
///
/// # Errors
/// If a step has no kernel on a device like this, or a library fails.
pub fn lower(plan: &Plan, facts: &Facts, offers: &mut dyn Offers) -> Result<LoweredPlan> {
    let mut out = LoweredPlan::default();
    let mut declined: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut number = 0;
    for (phase, steps) in [&plan.micro, &plan.update, &plan.eval].into_iter().enumerate() {
        for step in steps {
            let mut context = Lowering { plan, facts, offers, out: &mut out, number };
            let (lowered, fallback) =
                context.step(step).map_err(|e| e.at(format!("step `{}`", step.name)))?;
            // Evaluation is f32 and no part of a training step: cuDNN has no such attention, and what
            // falls back there is nothing that a person would change.
            if let Some(fallback) = fallback
                && phase < 2
            {
                *declined.entry(fallback).or_default() += 1;
            }
            out.scratch = out.scratch.max(lowered.scratch);
            out.phases[phase].push(Step { name: step.name.clone(), lowered });
            number += 1;
        }
    }
    out.notices =
        declined.into_iter().map(|((what, reason), n)| format!("{n} {what} ({reason})")).collect();
    Ok(out)
}

struct Lowering<'a> {
    plan: &'a Plan,
    facts: &'a Facts,
    offers: &'a mut dyn Offers,
    out: &'a mut LoweredPlan,
    /// Of the step among all of the plan: kernels report it with a fault.
    number: u32,
}

/// What falls back to kernels of ours, and why.
type Fallback = (&'static str, String);

impl Lowering<'_> {
    /// The tasks of a step, and why a library that might run it does not.
    fn step(&mut self, step: &PlanStep) -> Result<(Lowered, Option<Fallback>)> {
        let (plan, facts) = (self.plan, self.facts);
        let mut l = Lowered::default();
        if matches!(step.kernel, Kernel::Conv(_) | Kernel::Attention(_) | Kernel::AttentionGrad(_))
        {
            let reason = match self.offers.graph(plan, &step.kernel, &mut l)? {
                Graph::Lowered => return Ok((l, None)),
                Graph::No(reason) => reason,
            };
            let mut l = Lowered::default();
            match &step.kernel {
                Kernel::Conv(c) => kernels::lower_conv(plan, c, facts, &mut l)?,
                Kernel::Attention(a) => kernels::lower_attention(plan, a, facts, &mut l)?,
                Kernel::AttentionGrad(g) => kernels::lower_attention_grad(plan, g, facts, &mut l)?,
                _ => unreachable!("matched above"),
            }
            return Ok((l, Some(("steps without cuDNN", reason))));
        }
        let mut fallback = None;
        match &step.kernel {
            Kernel::Rows(r) => text::lower_rows(plan, r, &step.name, facts, &mut l)?,
            Kernel::Gemm(g) => fallback = self.gemm(g, &mut l)?,
            Kernel::MaxPool(p) => kernels::lower_max_pool(plan, p, facts, &mut l)?,
            Kernel::MaxPoolGrad(p) => kernels::lower_max_pool_grad(plan, p, facts, &mut l)?,
            Kernel::Gather(g) => kernels::lower_gather(plan, g, self.number, facts, &mut l)?,
            Kernel::ScatterAdd(g) => {
                kernels::lower_scatter_add(plan, g, self.number, facts, &mut l)?;
            }
            Kernel::LastIndex(i) => kernels::lower_last_index(plan, i, self.number, facts, &mut l)?,
            Kernel::CumSum(s) => kernels::lower_cumsum(plan, s, facts, &mut l)?,
            Kernel::TopK(t) => kernels::lower_top_k(plan, t, facts, &mut l)?,
            Kernel::Conv(_) | Kernel::Attention(_) | Kernel::AttentionGrad(_) => {
                unreachable!("handled above")
            }
        }
        Ok((l, fallback))
    }

    /// A product with its epilogue by cuBLASLt; else the product alone and the epilogue as a kernel
    /// over its f32 sums; else a kernel of ours for both.
    fn gemm(&mut self, g: &Gemm, l: &mut Lowered) -> Result<Option<Fallback>> {
        let fused = product::fused(self.plan, g);
        let why = match &fused {
            Some(products) => match self.refusal(products)? {
                None => {
                    self.push(fused.expect("matched"), l);
                    return Ok(None);
                }
                Some(reason) => reason,
            },
            None => product::why_apart(self.plan, g).into(),
        };
        if let Some(s) = &g.sums {
            // The product and the sums apart.
            let dtype = |a: &Access| self.plan.tensors[a.tensor as usize].dtype;
            let from = if s.operand == Operand::A { &g.a } else { &g.b };
            let alone = g.sums_alone(dtype(from), dtype(&s.out));
            let (program, instance) = alone.expect("the product has sums");
            let more = self.gemm(&Gemm { sums: None, ..g.clone() }, l)?;
            text::lower_program(self.plan, &program, &instance, self.facts, l)?;
            return Ok(more.or(Some(("products with the sums of an operand apart", why))));
        }
        let dims = [g.batch[0], g.batch[1], g.m, g.n];
        let mut apart = Lowered::default();
        let at = apart.reserve(dims.iter().product::<u64>() * 4);
        let plain = product::plain(self.plan, g, at);
        let why_plain = match &plain {
            Some(products) => match self.refusal(products)? {
                None => {
                    self.push(plain.expect("matched"), &mut apart);
                    let sums = (Place::Scratch { offset: at }, text::dense_strides(&dims));
                    text::lower_epilogue(
                        self.plan,
                        &g.epilogue,
                        &dims,
                        sums,
                        self.facts,
                        &mut apart,
                    )?;
                    *l = apart;
                    return Ok(Some(("products with an epilogue of their own", why)));
                }
                Some(reason) => reason,
            },
            None => "operands that cuBLASLt cannot read as they lie".into(),
        };
        kernels::lower_gemm_fallback(self.plan, g, self.facts, l)?;
        Ok(Some(("products without cuBLASLt", why_plain)))
    }

    /// Why the library does not run some of the calls.
    fn refusal(&mut self, products: &[Product]) -> Result<Option<String>> {
        // The calls of one step differ in addresses alone, but their alignments may differ.
        for p in products {
            if let Answer::No(reason) = self.offers.product(p)? {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    fn push(&mut self, products: Vec<Product>, l: &mut Lowered) {
        for p in products {
            l.tasks.push(Task::Product(self.out.products.len()));
            self.out.products.push(p);
        }
    }
}
