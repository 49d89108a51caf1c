//! Fits a description to steps of training.
//!
//! Kernels that are measured alone, many of a kind over small tensors of their own, run faster than in a
//! step: there caches hold what the kernel before left, operands lie in other orders, epilogues follow
//! products, and threads wait for one another. So networks are planned with the description, every kernel
//! of their steps is timed, and the description's figures are scaled until its prices are nearest to
//! those times. The prices of a step are linear in the figures' inverses, which makes it a problem of least squares
//! with bounds.

use super::networks::{FITTED, Folder, Network, batch, plan};
use super::validation::{median, settled};
use crate::failure::Outcome;
use precast_compiler::cost::step_ns;
use precast_plan::{DType, Family, Plan, Precision, Step, Target};
use precast_runtime::{KernelTime, ModelWeights, Phase, Session};
use std::path::Path;

/// A group of figures that are scaled together.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Figure {
    /// Bytes that are streamed from memory, or from a cache that the whole step fits.
    Memory,
    Cache,
    /// The start of a kernel, and the hand-over to other threads.
    Start,
    Handover,
    /// Instructions of row programs, and conversions.
    Instructions,
    Conversions,
    Product(Family, Precision),
}

/// Scales stay within these: a figure that is further off was measured wrongly, and no scale of it says
/// anything about other kernels.
const LEAST: f64 = 0.25;
const MOST: f64 = 4.0;
/// What starts and hand-overs are multiples of, ns: they may have been measured as nothing.
const UNIT: f64 = 1000.0;
/// Nanoseconds that a figure must take of some kernel to be seen: what takes no time takes next to none.
const SEEN: f64 = 1e-3;
/// How a scale's distance from 1 counts beside an error of a network's whole time: enough to decide what
/// no kernel decides.
const RIDGE: f64 = 1e-5;

/// How the error of a whole step counts beside those of its kernels together: what a step takes is what
/// people are told, and errors of kernels may make up for one another.
const WHOLE: f64 = 20.0;

impl Figure {
    fn all(target: &Target) -> Vec<Figure> {
        use Figure::*;
        let mut list = vec![Memory, Cache, Start, Handover, Instructions, Conversions];
        list.extend(target.products.iter().map(|s| Product(s.family, s.format)));
        list
    }

    /// Whether its scale is a multiple of [`UNIT`], not of what was measured.
    fn absolute(self) -> bool {
        matches!(self, Figure::Start | Figure::Handover)
    }

    /// The description with this figure alone: all else takes no time.
    fn alone(self, target: &Target) -> Target {
        const NO_TIME: f64 = 1e300;
        let mut t = target.clone();
        let streams = matches!(self, Figure::Memory | Figure::Cache);
        if !streams {
            t.bandwidth_gbs = NO_TIME;
        }
        t.launch_ns = if self == Figure::Start { UNIT } else { 0.0 };
        t.handover_ns = (self == Figure::Handover).then_some(UNIT);
        if self != Figure::Instructions {
            (t.simple_ns, t.divide_ns, t.transcendental_ns) = (0.0, 0.0, 0.0);
        }
        if self != Figure::Conversions {
            t.convert_ns.iter_mut().for_each(|c| c.1 = 0.0);
        }
        for s in &mut t.products {
            if self != Figure::Product(s.family, s.format) {
                s.points.iter_mut().for_each(|p| p.1 = NO_TIME);
            }
        }
        t
    }

    /// The description with this figure's times multiplied.
    fn scale(self, t: &mut Target, by: f64) {
        match self {
            Figure::Memory => t.bandwidth_gbs /= by,
            Figure::Cache => {
                if let Some(c) = &mut t.cache {
                    c.bandwidth_gbs /= by;
                }
            }
            Figure::Start => t.launch_ns = UNIT * by,
            Figure::Handover => t.handover_ns = t.handover_ns.map(|_| UNIT * by),
            Figure::Instructions => {
                t.simple_ns *= by;
                t.divide_ns *= by;
                t.transcendental_ns *= by;
            }
            Figure::Conversions => t.convert_ns.iter_mut().for_each(|c| c.1 *= by),
            Figure::Product(family, format) => {
                let own = |s: &&mut precast_plan::Speed| (s.family, s.format) == (family, format);
                for s in t.products.iter_mut().filter(own) {
                    s.points.iter_mut().for_each(|p| p.1 /= by);
                }
            }
        }
    }
}

/// One equation: what the figures say of a kernel or of a whole step, and what it takes, ns.
#[derive(Clone, Debug, PartialEq)]
struct Equation {
    parts: Vec<f64>,
    measured: f64,
    weight: f64,
}

/// The scales that bring the sums of `parts · scales` nearest to what was measured, by weighted squares,
/// within their bounds. `start` are the scales that nothing speaks against.
///
/// Coordinate descent: every scale in turn takes its best value beside the others, which converges for a
/// convex problem with bounds on single unknowns (Tseng, Convergence of a block coordinate descent method for
/// nondifferentiable minimization, 2001).
fn solve(equations: &[Equation], start: &[f64], bounds: &[(f64, f64)]) -> Vec<f64> {
    let mut x = start.to_vec();
    let mut left: Vec<f64> = equations
        .iter()
        .map(|e| e.measured - e.parts.iter().zip(&x).map(|(p, x)| p * x).sum::<f64>())
        .collect();
    for _ in 0..2000 {
        let mut moved: f64 = 0.0;
        for (i, &(least, most)) in bounds.iter().enumerate() {
            let (mut slope, mut curve) = (RIDGE * (start[i] - x[i]), RIDGE);
            for (e, left) in equations.iter().zip(&left) {
                slope += e.weight * e.parts[i] * left;
                curve += e.weight * e.parts[i] * e.parts[i];
            }
            let better = (x[i] + slope / curve).clamp(least, most);
            let by = better - x[i];
            if by != 0.0 {
                equations.iter().zip(&mut left).for_each(|(e, left)| *left -= by * e.parts[i]);
                x[i] = better;
                moved = moved.max(by.abs());
            }
        }
        if moved < 1e-9 {
            break;
        }
    }
    x
}

/// What a plan's kernels take, and its step as a whole, ns.
struct Timed {
    plan: Plan,
    kernels: Vec<f64>,
    step: f64,
}

impl Timed {
    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.plan.micro.iter().chain(&self.plan.update)
    }

    /// Equations of the kernels, which count by their share of the step, and one of the whole step.
    fn equations(&self, target: &Target, figures: &[Figure]) -> Vec<Equation> {
        let cached = target.clone().for_working_set(0);
        let price = |t: &Target| self.steps().map(|s| step_ns(t, s, &self.plan)).sum::<f64>();
        let off = |t: &Target| (price(t) - self.plan.summary.predicted_ns).abs();
        // The plan was made with the one or the other.
        let in_cache = target.cache.is_some() && off(&cached) < off(target);
        let of = if in_cache { &cached } else { target };
        let alone: Vec<Option<Target>> = figures
            .iter()
            .map(|f| match f {
                Figure::Memory if in_cache => None,
                Figure::Cache if !in_cache => None,
                _ => Some(f.alone(of)),
            })
            .collect();
        let mut whole = vec![0.0; figures.len()];
        let mut list: Vec<Equation> = self
            .steps()
            .zip(&self.kernels)
            .map(|(step, &measured)| {
                let part =
                    |t: &Option<Target>| t.as_ref().map_or(0.0, |t| step_ns(t, step, &self.plan));
                let parts: Vec<f64> = alone.iter().map(part).collect();
                whole.iter_mut().zip(&parts).for_each(|(w, p)| *w += p);
                Equation { parts, measured, weight: 1.0 / (measured.max(1.0) * self.step) }
            })
            .collect();
        list.push(Equation {
            parts: whole,
            measured: self.step,
            weight: WHOLE / (self.step * self.step),
        });
        list
    }
}

/// `target` with its figures scaled to steps that `timed` has measured.
fn scaled(target: &Target, timed: &[Timed]) -> Target {
    let figures = Figure::all(target);
    let equations: Vec<Equation> =
        timed.iter().flat_map(|t| t.equations(target, &figures)).collect();
    let start: Vec<f64> = figures
        .iter()
        .map(|f| match f {
            Figure::Start => target.launch_ns / UNIT,
            Figure::Handover => target.handover_ns.unwrap_or(0.0) / UNIT,
            _ => 1.0,
        })
        .collect();
    let bounds: Vec<(f64, f64)> =
        figures.iter().map(|f| if f.absolute() { (0.0, 100.0) } else { (LEAST, MOST) }).collect();
    let scales = solve(&equations, &start, &bounds);
    let mut out = target.clone();
    for (i, figure) in figures.iter().enumerate() {
        let seen = equations.iter().any(|e| e.parts[i] > SEEN);
        // What no network runs is as far off as the same family in f32: nothing must look cheaper
        // because nobody tried it.
        let by = match figure {
            Figure::Product(family, _) if !seen => {
                let exact = Figure::Product(*family, Precision::F32);
                figures.iter().position(|f| *f == exact).map_or(1.0, |at| scales[at])
            }
            Figure::Memory | Figure::Cache if !seen => 1.0,
            _ => scales[i],
        };
        figure.scale(&mut out, by);
    }
    if let Some(c) = &mut out.cache {
        c.bandwidth_gbs = c.bandwidth_gbs.max(out.bandwidth_gbs);
    }
    out
}

/// Turns in which a step's kernels are measured, so that what disturbs one is in one alone.
const TURNS: usize = 8;

/// Plans the networks with `target` in every precision that it multiplies, times their kernels over `steps`
/// steps, and scales the description's figures. Twice: the second plans are made with better prices.
pub fn fit(
    target: &Target,
    threads: usize,
    steps: u32,
    progress: &mut dyn FnMut(&str),
) -> Outcome<Target> {
    let folder = Folder::new()?;
    let policies = [("f32", DType::F32), ("bf16", DType::Bf16), ("f16", DType::F16)];
    let mut best = target.clone();
    for _ in 0..2 {
        let mut timed = vec![];
        for network in &FITTED {
            progress(&format!("steps of {}", network.name));
            for (policy, _) in policies.iter().filter(|p| best.multiplies(p.1.into())) {
                let plan = plan(network, &best, policy, &folder.0)?;
                timed.push(time(network, plan, (threads, steps), &folder.0)?);
            }
        }
        best = scaled(&best, &timed);
    }
    Ok(best)
}

fn time(
    network: &Network,
    plan: Plan,
    (threads, steps): (usize, u32),
    folder: &Path,
) -> Outcome<Timed> {
    let weights = ModelWeights::for_plan(&plan, folder, None)?;
    let options = precast_runtime::Options { threads, ..Default::default() };
    let mut session = Session::new(plan.clone(), &weights, &options)?;
    let batch = batch(&session.wanted(), network.ids);
    // The first step finds cold caches.
    session.step(std::slice::from_ref(&batch))?;
    session.time_kernels()?;
    let per_turn = steps.div_ceil(TURNS as u32);
    let (mut turns, mut whole) = (vec![vec![]; plan.micro.len() + plan.update.len()], vec![]);
    let step = std::slice::from_ref(&batch);
    let times = |s: &Session| -> Vec<KernelTime> {
        [Phase::Micro, Phase::Update].iter().flat_map(|&p| s.kernel_times(p).to_vec()).collect()
    };
    for _ in 0..TURNS {
        let before = times(&session);
        let all: precast_runtime::Result<Vec<f64>> =
            (0..per_turn).map(|_| session.step(step).map(|r| r.seconds * 1e9)).collect();
        whole.push(median(all?));
        for (k, now) in times(&session).iter().enumerate() {
            let old = before.get(k).copied().unwrap_or_default();
            turns[k].push(1e9 * now.mean_since(&old));
        }
    }
    let kernels = turns.into_iter().map(settled).collect();
    Ok(Timed { plan, kernels, step: settled(whole) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description whose steps take what another, the truth, says.
    fn truth(target: &Target, change: &[(Figure, f64)]) -> Target {
        let mut t = target.clone();
        change.iter().for_each(|(f, by)| f.scale(&mut t, *by));
        t
    }

    fn timed(truth: &Target, with: &Target, policies: &[&str]) -> Vec<Timed> {
        let folder = Folder::new().unwrap_or_else(|_| panic!("a folder"));
        let all = FITTED[..3].iter().flat_map(|n| policies.iter().map(move |p| (n, p)));
        all.map(|(network, policy)| {
            let plan = plan(network, with, policy, &folder.0).unwrap_or_else(|e| {
                e.report(false);
                panic!("{}", network.name)
            });
            let steps = plan.micro.iter().chain(&plan.update);
            let kernels: Vec<f64> = steps.map(|s| step_ns(truth, s, &plan)).collect();
            Timed { step: kernels.iter().sum(), kernels, plan }
        })
        .collect()
    }

    fn near(have: f64, want: f64) {
        assert!((have / want - 1.0).abs() < 0.04, "{have} is not {want}");
    }

    #[test]
    fn figures_that_are_off_are_found_from_the_times_of_kernels() {
        let mut start = Target::shipped("cpu-generic").expect("it is shipped");
        // One speed of memory, so that the truth is the same for every network.
        start.cache = None;
        start.handover_ns = Some(2000.0);
        let f32_gemm = Figure::Product(Family::Gemm, Precision::F32);
        let f32_conv = Figure::Product(Family::Conv, Precision::F32);
        let change = [
            (Figure::Memory, 1.6),
            (Figure::Start, 3.5),
            (Figure::Handover, 7.0),
            (Figure::Instructions, 2.0),
            (f32_gemm, 1.3),
            (f32_conv, 0.8),
        ];
        let truth = truth(&start, &change);
        let found = scaled(&start, &timed(&truth, &start, &["f32"]));
        near(found.bandwidth_gbs, truth.bandwidth_gbs);
        // Little of a step, so that their distance from where they began counts more.
        let about =
            |have: f64, want: f64| assert!((have / want - 1.0).abs() < 0.1, "{have}, {want}");
        about(found.launch_ns, 3500.0);
        about(found.handover_ns.expect("it was there"), 7000.0);
        near(found.simple_ns, truth.simple_ns);
        near(found.transcendental_ns, truth.transcendental_ns);
        let speed = |t: &Target, family| t.gflops(family, DType::F32, 256.0).expect("listed");
        near(speed(&found, Family::Gemm), speed(&truth, Family::Gemm));
        near(speed(&found, Family::Conv), speed(&truth, Family::Conv));
        near(speed(&found, Family::ConvDataGrad), speed(&start, Family::ConvDataGrad));
        found.check().expect("a sound description");
        // A format that was not tried is as far off as f32.
        let half = |t: &Target| t.gflops(Family::Gemm, DType::F16, 256.0).expect("listed");
        near(half(&found), half(&start) / 1.3);
    }

    #[test]
    fn what_is_right_stays() {
        let start = Target::shipped("cpu-avx512bf16").expect("it is shipped");
        let found = scaled(&start, &timed(&start.clone().for_working_set(0), &start, &["bf16"]));
        near(found.launch_ns, start.launch_ns);
        near(found.simple_ns, start.simple_ns);
        for (a, b) in found.products.iter().zip(&start.products) {
            a.points.iter().zip(&b.points).for_each(|(a, b)| near(a.1, b.1));
        }
    }

    #[test]
    fn the_parts_of_a_price_are_the_price() {
        let target = Target::shipped("cpu-avx512bf16").expect("it is shipped");
        let figures = Figure::all(&target);
        for t in timed(&target, &target, &["f32", "bf16"]) {
            let equations = t.equations(&target, &figures);
            let whole = equations.last().expect("of the whole step");
            let scales = figures.iter().map(|f| match f {
                Figure::Start => target.launch_ns / UNIT,
                Figure::Handover => target.handover_ns.unwrap_or(0.0) / UNIT,
                _ => 1.0,
            });
            let sum: f64 = whole.parts.iter().zip(scales).map(|(p, s)| p * s).sum();
            near(sum, t.plan.summary.predicted_ns);
        }
    }

    #[test]
    fn scales_stay_within_their_bounds() {
        let row =
            |parts: [f64; 2], measured| Equation { parts: parts.into(), measured, weight: 1.0 };
        let bounds = [(LEAST, MOST); 2];
        let x = solve(&[row([1.0, 0.0], 100.0), row([0.0, 1.0], 2.0)], &[1.0; 2], &bounds);
        assert_eq!(x[0], MOST);
        near(x[1], 2.0);
        // What no equation speaks of stays.
        let x = solve(&[row([1.0, 0.0], 3.0)], &[1.0; 2], &bounds);
        near(x[0], 3.0);
        assert_eq!(x[1], 1.0);
    }
}
