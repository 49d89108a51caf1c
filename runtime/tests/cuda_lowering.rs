//! A plan's steps as tasks for a GPU, without one.

mod common;

use common::mlp;
use precast_plan::{EpilogueKind, Kernel, Plan};
use precast_runtime::Result;
use precast_runtime::cuda::launch::{Facts, Lowered, Place, Task};
use precast_runtime::cuda::lower::{Answer, Assumed, Graph, LoweredPlan, Offers, lower};
use precast_runtime::cuda::product::{Fused, Product};
use precast_runtime::cuda::text::PRELUDE;

fn facts() -> Facts {
    Facts {
        capability: (9, 0),
        multiprocessors: 132,
        shared_per_block: 232_448,
        threads_per_multiprocessor: 2048,
    }
}

/// A library that takes some products.
struct Only(fn(&Product) -> bool);

impl Offers for Only {
    fn product(&mut self, p: &Product) -> Result<Answer> {
        Ok(if (self.0)(p) { Answer::Yes } else { Answer::No("it does not want to".into()) })
    }

    fn graph(&mut self, _: &Plan, _: &Kernel, _: &mut Lowered) -> Result<Graph> {
        Ok(Graph::No("no library is asked".into()))
    }
}

/// Counts of products and launches in the steps that are products.
fn counts(plan: &Plan, l: &LoweredPlan) -> Vec<(EpilogueKind, usize, usize)> {
    let steps = plan.micro.iter().zip(&l.phases[0]);
    steps
        .filter_map(|(step, lowered)| {
            let Kernel::Gemm(g) = &step.kernel else { return None };
            let tasks = &lowered.lowered.tasks;
            let products = tasks.iter().filter(|t| matches!(t, Task::Product(_))).count();
            let launches = tasks.iter().filter(|t| matches!(t, Task::Launch(_))).count();
            assert_eq!(products + launches, tasks.len());
            Some((g.epilogue.kind, products, launches))
        })
        .collect()
}

#[test]
fn a_product_falls_back_step_by_step() {
    let plan = mlp();
    let whole = lower(&plan, &facts(), &mut Assumed).unwrap();
    let products = counts(&plan, &whole);
    assert!(products.len() >= 4, "{products:?}");
    assert!(products.contains(&(EpilogueKind::Store, 1, 0)), "{products:?}");
    assert!(
        products.iter().all(|p| p.1 == 1 && (p.0 == EpilogueKind::Program) >= (p.2 == 1)),
        "only programs need a launch: {products:?}"
    );

    // Without epilogues: the sums go to scratch memory and a kernel follows.
    let mut plain = Only(|p| p.fused == Fused::None && p.c.is_none() && p.alpha.is_none());
    let plain = lower(&plan, &facts(), &mut plain).unwrap();
    let apart = counts(&plan, &plain);
    assert!(apart.iter().all(|p| p.1 == 1 && (p.0 == EpilogueKind::Store) == (p.2 == 0)));
    let largest = plain.products.iter().filter(|p| matches!(p.d.place, Place::Scratch { .. }));
    let largest = largest.map(|p| p.m * p.n * p.batch * 4).max().expect("some sums are apart");
    assert!(plain.scratch >= largest);
    let count = apart.iter().filter(|p| p.0 != EpilogueKind::Store).count();
    let said: Vec<&String> =
        plain.notices.iter().filter(|n| n.contains("with an epilogue of their own")).collect();
    let counted: usize =
        said.iter().map(|n| n.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert!(counted >= count && count > 0, "{said:?}");

    // Without the library: kernels alone.
    let none = lower(&plan, &facts(), &mut Only(|_| false)).unwrap();
    assert!(counts(&plan, &none).iter().all(|p| p.1 == 0 && p.2 >= 1));
    assert!(none.products.is_empty());
    let said = none.notices.iter().any(|n| n.ends_with("without cuBLASLt (it does not want to)"));
    assert!(said, "{:?}", none.notices);
}

#[test]
fn steps_keep_their_names_and_their_order() {
    let plan = mlp();
    let l = lower(&plan, &facts(), &mut Assumed).unwrap();
    for (steps, lowered) in [&plan.micro, &plan.update, &plan.eval].into_iter().zip(&l.phases) {
        let names: Vec<&str> = lowered.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>());
        assert!(lowered.iter().all(|s| !s.lowered.tasks.is_empty()));
    }
    let numbers = l.phases.iter().flatten().flat_map(|s| &s.lowered.tasks);
    let numbers: Vec<usize> = numbers
        .filter_map(|t| match t {
            Task::Product(i) => Some(*i),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, (0..l.products.len()).collect::<Vec<_>>(), "each product once, in order");
}

#[test]
fn texts_are_whole_and_the_same_every_time() {
    let plan = mlp();
    let texts = lower(&plan, &facts(), &mut Assumed).unwrap().texts();
    assert!(!texts.is_empty());
    for (entry, source) in &texts {
        assert!(source.text.starts_with(PRELUDE));
        assert!(source.text.contains(&format!("{entry}(")), "{entry}");
        assert!((1..=1024).contains(&source.max_threads), "{entry}");
    }
    assert_eq!(texts, lower(&plan, &facts(), &mut Assumed).unwrap().texts());
}
