//! Descriptions of targets that no machine need have: every figure is drawn, each from a range wider than
//! what machines are measured to have, so that nothing holds by how figures usually lie to each other.

use precast_plan::{Cache, DType, Family, Precision, Speed, Target};

/// A description; `roll(n)` is a random number below `n`.
pub fn random(roll: &mut dyn FnMut(usize) -> usize) -> Target {
    // Evenly over the orders of magnitude.
    fn between(roll: &mut dyn FnMut(usize) -> usize, low: f64, high: f64) -> f64 {
        low * (high / low).powf(roll(10_001) as f64 / 1e4)
    }
    // Times may be nothing at all.
    fn time(roll: &mut dyn FnMut(usize) -> usize, low: f64, high: f64) -> f64 {
        if roll(8) == 0 { 0.0 } else { between(roll, low, high) }
    }
    let device = ["cpu", "cpu", "cuda"][roll(3)];
    let sizes = [16.0, 64.0, 300.0, 1024.0];
    let formats: &[Precision] = match device {
        "cpu" => &[Precision::F32, Precision::F16, Precision::Bf16],
        _ => &Precision::ALL,
    };
    let mut products = vec![];
    for &format in formats {
        if format != Precision::F32 && roll(8) == 0 {
            continue;
        }
        // Formats differ more than the sizes and families of one, or the same would always win.
        let usual = between(roll, 1.0, 1e4);
        for family in Family::ALL {
            let attention = matches!(family, Family::Attention | Family::AttentionGrad);
            if format == Precision::Fp8 && family != Family::Gemm
                || format == Precision::Tf32 && attention
            {
                continue;
            }
            let (first, count) = (roll(3), 1 + roll(2));
            let points = sizes[first..].iter().take(count);
            let points = points.map(|&s| (s, usual * between(roll, 0.1, 10.0))).collect();
            products.push(Speed { family, format, points });
        }
    }
    let stored = [DType::F16, DType::Bf16, DType::F8e4m3, DType::F8e5m2];
    let stored = stored.into_iter().filter(|&d| device == "cuda" || d.size() > 1);
    let bandwidth_gbs = between(roll, 0.5, 5e3);
    let t = Target {
        name: "random".into(),
        device: device.into(),
        source: "drawn".into(),
        bandwidth_gbs,
        cache: (roll(2) == 0).then(|| Cache {
            bytes: between(roll, 1e4, 1e9) as u64,
            bandwidth_gbs: between(roll, 0.5, 5e3),
        }),
        launch_ns: time(roll, 1.0, 1e5),
        handover_ns: (roll(2) == 0).then(|| time(roll, 1.0, 1e5)),
        simple_ns: time(roll, 1e-4, 1.0),
        divide_ns: time(roll, 1e-4, 10.0),
        transcendental_ns: time(roll, 1e-4, 10.0),
        convert_ns: stored.map(|d| (d, time(roll, 1e-4, 10.0))).collect(),
        products,
    };
    t.check().unwrap_or_else(|e| panic!("{e}: {t:?}"));
    t
}
