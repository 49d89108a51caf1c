use super::*;

/// A machine whose times are known: 20 GB/s, 0.05 ns an instruction, 100 GFLOP/s in f32 and 200 in
/// 16 bits, 800 ns to start a kernel and 5 µs to enter a phase. It has two threads, and shares nothing but
/// the programs of the hand-over's measurement, at no gain, for 3 µs. What a kernel of nothing but a start
/// touches is near at hand and moves for nothing, as on any machine.
fn machine(plan: &Plan) -> f64 {
    let bytes = |a: &Access| {
        let t = &plan.tensors[a.tensor as usize];
        t.shape.iter().product::<u64>() as f64 * t.dtype.size() as f64
    };
    let kernel = |step: &Step| match &step.kernel {
        Kernel::Rows(r) => {
            let p = &plan.programs[r.program as usize];
            let i = &r.instances[0];
            let n = i.dims[0] as f64;
            let moved = bytes(&i.inputs[0]) + bytes(&i.outputs[0]);
            let work = if moved <= 128.0 { 0.0 } else { moved / 20.0 }
                + n * (p.code.len() as f64 - 1.0) * 0.05;
            match p.code.len() {
                63 if n > 1024.0 => work / 2.0 + 3000.0,
                _ => work,
            }
        }
        Kernel::Gemm(g) => {
            let traffic = bytes(&g.a) + bytes(&g.b) + bytes(&g.epilogue.outputs[0]);
            let fast = plan.tensors[g.a.tensor as usize].dtype != DType::F32;
            2.0 * (g.m * g.n * g.k) as f64 / if fast { 200.0 } else { 100.0 } + traffic / 20.0
        }
        Kernel::Conv(c) => {
            let g = &c.geometry;
            2.0 * (g.n * g.o * g.oh * g.ow * g.c * g.kh * g.kw) as f64 / 100.0
                + (bytes(&c.a) + bytes(&c.b) + bytes(&c.epilogue.outputs[0])) / 20.0
        }
        Kernel::Attention(a) => 4.0 * (a.batch * a.heads * a.tq * a.tk * a.d) as f64 / 50.0,
        Kernel::AttentionGrad(g) => {
            let a = &g.forward;
            10.0 * (a.batch * a.heads * a.tq * a.tk * a.d) as f64 / 50.0
        }
        _ => unreachable!("calibration runs no other kernel"),
    };
    5000.0 + plan.micro.iter().map(|s| 800.0 + kernel(s)).sum::<f64>()
}

/// Calibrates with times that `timer` makes of a plan's own, told the number of the measurement.
fn calibrated(timer: &dyn Fn(u64, f64) -> f64) -> Calibrated {
    let count = std::cell::Cell::new(0);
    let timer = |plan: Plan| {
        count.set(count.get() + 1);
        Ok(timer(count.get(), machine(&plan)))
    };
    let limits = Limits::default();
    let mut elapsed = || Duration::ZERO;
    let run = Run { name: "test", source: "a test".into(), threads: 2, timer: &timer };
    with(&run, &limits, &mut elapsed, &mut |_| ()).unwrap()
}

fn near(have: f64, want: f64, share: f64) {
    assert!((have / want - 1.0).abs() <= share, "{have} is not {want}");
}

#[test]
fn figures_are_those_of_the_machine() {
    let c = calibrated(&|_, ns| ns);
    assert_eq!((c.unsteady, c.rounds), (None, 3));
    let t = c.target;
    t.check().unwrap();
    assert_eq!(t.source, "a test");
    near(t.launch_ns, 800.0, 1e-6);
    near(t.bandwidth_gbs, 20.0, 1e-6);
    near(t.simple_ns, 0.05, 1e-6);
    assert_eq!(t.cache, None, "this machine has none");
    near(t.handover_ns.unwrap(), 3000.0, 1e-6);
    let speed = |f, d: DType, size| t.gflops(f, d, size).unwrap();
    near(speed(Family::Gemm, DType::F32, 1024.0), 100.0, 1e-6);
    // Less the conversions, which this machine does not charge for.
    near(speed(Family::Gemm, DType::Bf16, 1024.0), 200.0, 0.05);
    near(speed(Family::Conv, DType::F32, 600.0), 100.0, 1e-6);
}

#[test]
fn what_disturbs_some_rounds_does_not_get_into_the_figures() {
    // One measurement in four is slow, by up to four times.
    let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let noisy = |n: u64, ns: f64| match hash(n) % 4 {
        0 => ns * (1.5 + (hash(n + 1) % 100) as f64 / 40.0),
        _ => ns * (1.0 + (hash(n + 1) % 100) as f64 / 20_000.0),
    };
    let c = calibrated(&noisy);
    assert_eq!(c.unsteady, None);
    assert!((4..20).contains(&c.rounds), "{}", c.rounds);
    near(c.target.bandwidth_gbs, 20.0, 0.02);
    near(c.target.gflops(Family::Gemm, DType::F32, 1024.0).unwrap(), 100.0, 0.02);
}

#[test]
fn a_machine_that_never_agrees_is_said_to_be_unsteady() {
    let c = calibrated(&|n, ns| ns * (1.0 + n as f64 / 10.0));
    let u = c.unsteady.expect("no two rounds agree");
    assert_eq!((c.rounds, u.rounds), (20, 20));
    assert!(u.unsettled > 10 && u.unsettled <= u.of, "{u}");
    c.target.check().unwrap();
}

#[test]
fn every_family_and_format_can_be_measured() {
    for family in Family::ALL {
        for format in FORMATS {
            // The smallest size alone: the numbers are the machine's business.
            let p = match family {
                Family::Gemm => {
                    let mut b = Builder::default();
                    b.gemm(16, format);
                    b
                }
                Family::Conv | Family::ConvDataGrad | Family::ConvFilterGrad => {
                    let kind = match family {
                        Family::Conv => ConvKind::Forward,
                        Family::ConvDataGrad => ConvKind::DataGrad,
                        _ => ConvKind::FilterGrad,
                    };
                    let mut b = Builder::default();
                    b.conv(kind, geometry(1, 4, 4), format);
                    b
                }
                Family::Attention | Family::AttentionGrad => {
                    let mut b = Builder::default();
                    b.attention(1, 1, 8, 8, format, family == Family::AttentionGrad);
                    b
                }
            };
            let ns = time(p.finish(), 1).unwrap_or_else(|e| panic!("{family:?} {format}: {e}"));
            assert!(ns > 0.0 && ns.is_finite());
        }
    }
}
