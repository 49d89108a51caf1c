//! The descriptions that come with Precast, and where each number is from.

use super::{Cache, Family, Speed, Target};
use crate::dtype::DType;
use crate::precision::Precision;

/// A GPU's data sheet.
struct Board {
    /// As a recipe names it.
    name: &'static str,
    /// As NVIDIA does.
    title: &'static str,
    /// Bytes of its memory a second, GB/s.
    bandwidth: f64,
    /// Peaks, TFLOP/s, dense: f32 by the ordinary lanes, the others by tensor cores.
    peaks: &'static [(Precision, f64)],
}

/// Peaks and bandwidths as NVIDIA's data sheets give them for the SXM boards; where a sheet counts
/// with sparsity, half of it.
///
/// - V100: "NVIDIA V100 Tensor Core GPU" (2020). Its tensor cores multiply f16 alone.
/// - A100: "NVIDIA A100 Tensor Core GPU" (2021), 80 GB. From here on TF32 and bf16.
/// - H100, H200: "NVIDIA H100 Tensor Core GPU" (2023) and "NVIDIA H200 Tensor Core GPU" (2024),
///   which differ in memory alone. From here on FP8.
/// - B200: "NVIDIA HGX B200" and "NVIDIA DGX B200" (2025), an eighth of the system's figures.
const BOARDS: [Board; 5] = [
    Board {
        name: "v100",
        title: "V100-SXM2",
        bandwidth: 900.0,
        peaks: &[(Precision::F32, 15.7), (Precision::F16, 125.0)],
    },
    Board {
        name: "a100",
        title: "A100-SXM 80 GB",
        bandwidth: 2039.0,
        peaks: &[
            (Precision::F32, 19.5),
            (Precision::Tf32, 156.0),
            (Precision::F16, 312.0),
            (Precision::Bf16, 312.0),
        ],
    },
    Board { name: "h100", title: "H100-SXM", bandwidth: 3350.0, peaks: HOPPER },
    Board { name: "h200", title: "H200-SXM", bandwidth: 4800.0, peaks: HOPPER },
    Board {
        name: "b200",
        title: "B200-SXM",
        bandwidth: 8000.0,
        peaks: &[
            (Precision::F32, 75.0),
            (Precision::Tf32, 1125.0),
            (Precision::F16, 2250.0),
            (Precision::Bf16, 2250.0),
            (Precision::Fp8, 4500.0),
        ],
    },
];

const HOPPER: &[(Precision, f64)] = &[
    (Precision::F32, 67.0),
    (Precision::Tf32, 494.5),
    (Precision::F16, 989.0),
    (Precision::Bf16, 989.0),
    (Precision::Fp8, 1979.0),
];

/// Architectures by name, and the board that stands for each.
const ARCHITECTURES: [(&str, &str); 4] =
    [("sm_70", "v100"), ("sm_80", "a100"), ("sm_90", "h100"), ("sm_100", "b200")];

impl Target {
    /// Names of the shipped descriptions. An architecture is described by the first board that
    /// has it.
    pub const SHIPPED: [&'static str; 11] = [
        "cpu-generic",
        "cpu-avx512bf16",
        "sm_70",
        "sm_80",
        "sm_90",
        "sm_100",
        "v100",
        "a100",
        "h100",
        "h200",
        "b200",
    ];

    /// A shipped description.
    pub fn shipped(name: &str) -> Option<Target> {
        match name {
            "cpu-generic" => return Some(cpu_generic()),
            "cpu-avx512bf16" => return Some(cpu_avx512bf16()),
            _ => {}
        }
        let stands_for = ARCHITECTURES.iter().find(|(sm, _)| *sm == name);
        let board = stands_for.map_or(name, |(_, board)| board);
        BOARDS.iter().find(|b| b.name == board).map(|b| gpu(name, b))
    }

    /// The shipped description of a GPU by its compute capability: that of its own architecture,
    /// or of the next older one with the same formats. `None` before tensor cores.
    pub fn for_capability(major: u32, minor: u32) -> Option<Target> {
        let name = match (major, minor) {
            (7, _) => "sm_70",
            (8, _) => "sm_80",
            (9, _) => "sm_90",
            (10.., _) => "sm_100",
            _ => return None,
        };
        Target::shipped(name)
    }

    /// Whether the shipped description of this name is that of a GPU, of its board or of its
    /// architecture; `None` where it is of no GPU.
    pub fn describes(name: &str, gpu: &str, capability: (u32, u32)) -> Option<bool> {
        if Target::shipped(name).is_none_or(|t| t.device != "cuda") {
            return None;
        }
        let own = Target::for_gpu(gpu, capability);
        let family = Target::for_capability(capability.0, capability.1);
        Some([own, family].into_iter().flatten().any(|t| t.name == name))
    }

    /// The shipped description of a GPU: that of its board where the name that its driver gives
    /// says which (`NVIDIA H200`), else [`Target::for_capability`].
    pub fn for_gpu(name: &str, capability: (u32, u32)) -> Option<Target> {
        let words = name.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase);
        // `Tesla V100-SXM2-16GB`, `NVIDIA A100-SXM4-80GB`; the boards of other form factors are
        // slower and are described by their architecture.
        let words: Vec<String> = words.collect();
        let other = words.iter().any(|w| matches!(w.as_str(), "pcie" | "nvl" | "mig"));
        let board = BOARDS.iter().find(|b| words.iter().any(|w| w == b.name));
        match board.filter(|_| !other) {
            Some(b) => Target::shipped(b.name),
            None => Target::for_capability(capability.0, capability.1),
        }
    }
}

fn speeds(format: impl Into<Precision>, rows: &[(Family, &[(f64, f64)])]) -> Vec<Speed> {
    let format = format.into();
    rows.iter().map(|(family, p)| Speed { family: *family, format, points: p.to_vec() }).collect()
}

/// A processor with AVX2 and FMA and no 16-bit products: they widen while packing, and run a little
/// slower than f32. What `precast calibrate --rounds 6` wrote.
fn cpu_generic() -> Target {
    use Family::*;
    let f32s: &[(Family, &[(f64, f64)])] = &[
        (Gemm, &[(16.0, 42.5), (64.0, 86.6), (192.0, 196.8), (384.0, 197.7), (1024.0, 192.2)]),
        (Conv, &[(52.8, 58.6), (335.5, 180.4), (532.5, 189.4), (845.3, 184.8)]),
        (ConvDataGrad, &[(52.8, 50.7), (335.5, 179.9), (532.5, 187.9), (845.3, 185.5)]),
        (ConvFilterGrad, &[(52.8, 28.7), (335.5, 181.7), (532.5, 186.8), (845.3, 183.7)]),
        (Attention, &[(40.3, 101.9), (101.6, 142.3), (256.0, 145.3)]),
        (AttentionGrad, &[(40.3, 119.2), (101.6, 124.7), (256.0, 157.1)]),
    ];
    let bf16s: &[(Family, &[(f64, f64)])] = &[
        (Gemm, &[(16.0, 9.8), (64.0, 59.4), (192.0, 153.4), (384.0, 179.2), (1024.0, 188.0)]),
        (Conv, &[(52.8, 55.2), (335.5, 175.4), (532.5, 185.6), (845.3, 185.3)]),
        (ConvDataGrad, &[(52.8, 54.0), (335.5, 173.7), (532.5, 181.8), (845.3, 183.1)]),
        (ConvFilterGrad, &[(52.8, 26.6), (335.5, 174.5), (532.5, 184.7), (845.3, 188.0)]),
        (Attention, &[(40.3, 63.5), (101.6, 108.5), (256.0, 118.9)]),
        (AttentionGrad, &[(40.3, 75.8), (101.6, 129.0), (256.0, 153.7)]),
    ];
    let f16s: &[(Family, &[(f64, f64)])] = &[
        (Gemm, &[(16.0, 9.6), (64.0, 59.8), (192.0, 126.1), (384.0, 178.6), (1024.0, 190.3)]),
        (Conv, &[(52.8, 51.4), (335.5, 177.2), (532.5, 185.2), (845.3, 183.1)]),
        (ConvDataGrad, &[(52.8, 50.9), (335.5, 174.9), (532.5, 183.2), (845.3, 182.9)]),
        (ConvFilterGrad, &[(52.8, 27.6), (335.5, 179.3), (532.5, 187.7), (845.3, 185.5)]),
        (Attention, &[(40.3, 62.6), (101.6, 118.4), (256.0, 136.5)]),
        (AttentionGrad, &[(40.3, 75.4), (101.6, 130.6), (256.0, 150.0)]),
    ];
    let mut products = speeds(DType::F32, f32s);
    products.extend(speeds(DType::Bf16, bf16s));
    products.extend(speeds(DType::F16, f16s));
    Target {
        name: "cpu-generic".into(),
        device: "cpu".into(),
        source: "measured by `precast calibrate`: AMD Zen 3, 2 cores, AVX2".into(),
        bandwidth_gbs: 23.3,
        cache: Some(Cache { bytes: 32 << 20, bandwidth_gbs: 35.0 }),
        launch_ns: 93.3,
        handover_ns: None,
        simple_ns: 0.034,
        divide_ns: 0.077,
        transcendental_ns: 0.402,
        convert_ns: vec![(DType::Bf16, 0.059), (DType::F16, 0.088)],
        products,
    }
}

/// A processor with AVX512-BF16.
fn cpu_avx512bf16() -> Target {
    use Family::*;
    let f32s: &[(Family, &[(f64, f64)])] = &[
        (Gemm, &[(16.0, 12.0), (64.0, 80.0), (256.0, 120.0), (1024.0, 145.0)]),
        (Conv, &[(16.0, 12.0), (64.0, 60.0), (256.0, 90.0), (1024.0, 100.0)]),
        (ConvDataGrad, &[(16.0, 12.0), (64.0, 60.0), (256.0, 90.0), (1024.0, 100.0)]),
        (ConvFilterGrad, &[(16.0, 12.0), (64.0, 50.0), (256.0, 80.0), (1024.0, 90.0)]),
        (Attention, &[(16.0, 15.0), (64.0, 50.0), (256.0, 80.0)]),
        (AttentionGrad, &[(16.0, 15.0), (64.0, 50.0), (256.0, 80.0)]),
    ];
    let mut products = speeds(DType::F32, f32s);
    let mut half = speeds(DType::Bf16, f32s);
    for s in &mut half {
        s.points.iter_mut().for_each(|p| p.1 *= 2.2);
    }
    products.append(&mut half);
    let mut widened = speeds(DType::F16, f32s);
    for s in &mut widened {
        s.points.iter_mut().for_each(|p| p.1 *= 0.95);
    }
    products.append(&mut widened);
    Target {
        name: "cpu-avx512bf16".into(),
        device: "cpu".into(),
        source: "estimated, not measured: published products of a Zen 4 with AVX512-BF16 (bf16 2.2 times f32)".into(),
        bandwidth_gbs: 25.0,
        cache: None,
        launch_ns: 2000.0,
        handover_ns: None,
        simple_ns: 0.02,
        divide_ns: 0.1,
        transcendental_ns: 0.35,
        convert_ns: vec![(DType::Bf16, 0.03), (DType::F16, 0.04)],
        products,
    }
}

/// Share of the memory's bandwidth that a kernel streams at. An estimate.
const STREAMED: f64 = 0.85;
/// Start and end of one kernel of a captured graph, ns. An estimate.
const LAUNCH_NS: f64 = 2500.0;
/// One simple instruction on one element, and a division, square root, exponential, …, ns: what
/// the lanes of an H100 do at about a sixth of their rate, since addresses, loads, conversions and
/// stores take the rest; slower boards are bound by memory before this shows. Estimates.
const SIMPLE_NS: f64 = 2e-4;
const FUNCTION_NS: f64 = 8e-4;
/// Shares of the peak that large products reach, by family. Estimates.
const SUSTAINED: [(Family, f64); 6] = [
    (Family::Gemm, 0.7),
    (Family::Conv, 0.5),
    (Family::ConvDataGrad, 0.5),
    (Family::ConvFilterGrad, 0.4),
    (Family::Attention, 0.5),
    (Family::AttentionGrad, 0.4),
];
/// Shares of that which smaller products reach, by size, in f32. Estimates.
const FILLED: [(f64, f64); 3] = [(32.0, 0.01), (256.0, 0.25), (1024.0, 0.8)];

/// By precision: what the shares of [`FILLED`] are multiplied with, since a faster unit needs a
/// larger product to fill it, and those of [`SUSTAINED`], since at the same power twice the
/// products a second are not reached. Estimates.
fn fill(precision: Precision) -> (f64, f64) {
    match precision {
        Precision::F32 => (1.0, 1.0),
        Precision::Tf32 => (0.6, 1.0),
        Precision::F16 | Precision::Bf16 => (0.5, 1.0),
        Precision::Fp8 => (0.35, 0.9),
    }
}

/// Whether a family has kernels in a precision: FP8 multiplies matrices alone, and attention over
/// f32 is multiplied exactly.
fn has(family: Family, precision: Precision) -> bool {
    match precision {
        Precision::Fp8 => family == Family::Gemm,
        Precision::Tf32 => !matches!(family, Family::Attention | Family::AttentionGrad),
        _ => true,
    }
}

/// A GPU from its data sheet, for planning; nothing was measured. The terms are the same for every
/// policy. A device's own figures are what `precast calibrate` writes.
fn gpu(name: &str, board: &Board) -> Target {
    let mut products = Vec::new();
    for &(format, tflops) in board.peaks {
        let (small, large) = fill(format);
        for (family, most) in SUSTAINED.into_iter().filter(|(f, _)| has(*f, format)) {
            let peak = tflops * 1e3 * most * large;
            let mut points: Vec<(f64, f64)> =
                FILLED.iter().map(|&(size, share)| (size, peak * share * small)).collect();
            points.push((4096.0, peak));
            products.push(Speed { family, format, points });
        }
    }
    // Conversion is hidden behind memory; what has products is also stored.
    let stored = [DType::F16, DType::Bf16, DType::F8e4m3, DType::F8e5m2];
    let convert_ns = stored.into_iter().filter(|&d| {
        let precision = Precision::from(d);
        board.peaks.iter().any(|p| p.0 == precision)
    });
    Target {
        name: name.into(),
        device: "cuda".into(),
        source: format!("data sheet of the {}, for planning", board.title),
        bandwidth_gbs: board.bandwidth * STREAMED,
        // A data sheet gives the size of the second-level cache and not its speed.
        cache: None,
        launch_ns: LAUNCH_NS,
        handover_ns: None,
        simple_ns: SIMPLE_NS,
        divide_ns: FUNCTION_NS,
        transcendental_ns: FUNCTION_NS,
        convert_ns: convert_ns.map(|d| (d, 0.0)).collect(),
        products,
    }
}
