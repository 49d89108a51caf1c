//! What is known of a target: how fast its kernels are. A plain value that is read from and
//! written to TOML, so that a calibrated description can be used on another machine.

use crate::dtype::DType;
use crate::program::UnaryOp;
use crate::schema::TargetSummary;
use serde::{Deserialize, Serialize};

/// Kernels whose speed is measured on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Gemm,
    Conv,
    ConvDataGrad,
    ConvFilterGrad,
    Attention,
    AttentionGrad,
}

impl Family {
    pub const ALL: [Family; 6] = [
        Family::Gemm,
        Family::Conv,
        Family::ConvDataGrad,
        Family::ConvFilterGrad,
        Family::Attention,
        Family::AttentionGrad,
    ];
}

/// Speed of one family with operands of one format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    pub family: Family,
    pub format: DType,
    /// (size, GFLOP/s), ascending sizes. The size of a product of extents m, n, k is ∛(m·n·k) of
    /// one matrix of a batch. Between points speed is linear in the logarithm of the size; outside
    /// them it is that of the nearest point.
    pub points: Vec<(f64, f64)>,
}

/// A cache that all of a step's tensors may stay in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Bytes of tensors that it holds beside all else.
    pub bytes: u64,
    /// Bytes that a kernel reads from and writes to it, GB/s.
    pub bandwidth_gbs: f64,
}

/// A described target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub name: String,
    /// The backend that runs its plans: `cpu` or `cuda`.
    pub device: String,
    /// Where the numbers come from.
    pub source: String,
    /// Bytes that a streaming kernel reads and writes, GB/s.
    pub bandwidth_gbs: f64,
    /// Faster than `bandwidth_gbs` for steps that fit; absent where that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Starting one kernel, ns.
    pub launch_ns: f64,
    /// One addition, multiplication, comparison or selection of one element, ns.
    pub simple_ns: f64,
    /// One division or square root, ns.
    pub divide_ns: f64,
    /// One exponential, logarithm, error function, …, ns.
    pub transcendental_ns: f64,
    /// Widening on load or rounding on store, one element, ns, by format. A format that is not
    /// listed cannot be stored by this target's kernels.
    pub convert_ns: Vec<(DType, f64)>,
    /// A family and format that is not listed cannot run on this target.
    pub products: Vec<Speed>,
}

impl Target {
    /// Names of the shipped descriptions.
    pub const SHIPPED: [&'static str; 6] =
        ["cpu-generic", "cpu-avx512bf16", "sm_70", "sm_80", "sm_90", "sm_100"];

    /// A shipped description.
    pub fn shipped(name: &str) -> Option<Target> {
        Some(match name {
            "cpu-generic" => cpu_generic(),
            "cpu-avx512bf16" => cpu_avx512bf16(),
            // Its tensor cores multiply f16 alone, and its kernels are not asked to store bf16.
            "sm_70" => gpu("sm_70", "V100-SXM2", 900.0, &[(DType::F32, 15.7), (DType::F16, 125.0)]),
            "sm_80" => gpu(
                "sm_80",
                "A100-SXM 80 GB",
                2039.0,
                &[(DType::F32, 19.5), (DType::F16, 312.0), (DType::Bf16, 312.0)],
            ),
            "sm_90" => gpu(
                "sm_90",
                "H100-SXM",
                3350.0,
                &[(DType::F32, 67.0), (DType::F16, 989.0), (DType::Bf16, 989.0)],
            ),
            "sm_100" => gpu(
                "sm_100",
                "B200-SXM",
                8000.0,
                &[(DType::F32, 75.0), (DType::F16, 2250.0), (DType::Bf16, 2250.0)],
            ),
            _ => return None,
        })
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

    /// The target as a step finds it that has so many bytes of tensors at once: where they fit the
    /// cache, traffic has its speed.
    pub fn for_working_set(mut self, bytes: u64) -> Target {
        if let Some(cache) = self.cache.take_if(|c| bytes <= c.bytes) {
            self.bandwidth_gbs = self.bandwidth_gbs.max(cache.bandwidth_gbs);
        }
        self
    }

    /// Whether a product can end in any elementwise program. Where products are a vendor library's,
    /// they end in what it offers ([`crate::EpilogueKind`]) and what follows is a kernel of its own.
    pub fn any_epilogue(&self) -> bool {
        self.device == "cpu"
    }

    /// Bytes of an element up to which convolutions want their channels innermost in memory: tensor
    /// cores take 16-bit operands so, and a library transposes what lies otherwise. Kernels for f32
    /// operands, and those of CPUs, take the axes in order.
    pub fn channels_last(&self) -> usize {
        if self.device == "cuda" { 2 } else { 0 }
    }

    pub fn summary(&self) -> TargetSummary {
        TargetSummary { name: self.name.clone(), device: self.device.clone() }
    }

    /// Speed in GFLOP/s (FLOP/ns) of a product of this size; `None` where the target has no such
    /// kernel.
    pub fn gflops(&self, family: Family, format: DType, size: f64) -> Option<f64> {
        let speed = self.products.iter().find(|s| s.family == family && s.format == format)?;
        let points = &speed.points;
        let (first, last) = (points.first()?, points.last()?);
        if size <= first.0 {
            return Some(first.1);
        }
        if size >= last.0 {
            return Some(last.1);
        }
        let i = points.iter().position(|p| p.0 >= size).expect("the size lies between two points");
        let ((x0, y0), (x1, y1)) = (points[i - 1], points[i]);
        let t = (size.ln() - x0.ln()) / (x1.ln() - x0.ln());
        Some(y0 + t * (y1 - y0))
    }

    /// Cost of converting one element, ns; `None` where the target cannot store the format.
    pub fn convert(&self, format: DType) -> Option<f64> {
        if format == DType::F32 {
            return Some(0.0);
        }
        self.convert_ns.iter().find(|(d, _)| *d == format).map(|(_, ns)| *ns)
    }

    /// Cost of one application of an elementary function to one element, ns.
    pub fn unary_ns(&self, op: UnaryOp) -> f64 {
        use UnaryOp::*;
        match op {
            Exp | Expm1 | Log | Log1p | Sin | Cos | Tanh | Erf | Sigmoid => self.transcendental_ns,
            Sqrt | Rsqrt | Recip => self.divide_ns,
            Neg | Abs | Floor | Ceil | RoundEven | IsFinite | Not | ToReal | ToInt | ToBool => {
                self.simple_ns
            }
        }
    }

    /// What is wrong with a description that was read from a file, in words.
    pub fn check(&self) -> Result<(), String> {
        let positive = |what: &str, x: f64| {
            if x.is_finite() && x > 0.0 {
                Ok(())
            } else {
                Err(format!("`{what}` is {x}, not positive"))
            }
        };
        positive("bandwidth_gbs", self.bandwidth_gbs)?;
        if let Some(c) = self.cache {
            positive("cache.bandwidth_gbs", c.bandwidth_gbs)?;
            positive("cache.bytes", c.bytes as f64)?;
        }
        let times = [
            ("launch_ns", self.launch_ns),
            ("simple_ns", self.simple_ns),
            ("divide_ns", self.divide_ns),
            ("transcendental_ns", self.transcendental_ns),
        ];
        let conversions = self.convert_ns.iter().map(|(_, ns)| ("convert_ns", *ns));
        for (what, x) in times.into_iter().chain(conversions) {
            if !x.is_finite() || x < 0.0 {
                return Err(format!("`{what}` is {x}, not a time"));
            }
        }
        if !matches!(self.device.as_str(), "cpu" | "cuda") {
            return Err(format!("`device` is `{}`, not `cpu` or `cuda`", self.device));
        }
        for s in &self.products {
            for (size, speed) in &s.points {
                positive("size", *size)?;
                positive("GFLOP/s", *speed)?;
            }
            if s.points.is_empty() || s.points.windows(2).any(|w| w[0].0 >= w[1].0) {
                return Err(format!("the points of {:?} in {} do not ascend", s.family, s.format));
            }
        }
        for family in Family::ALL {
            if self.gflops(family, DType::F32, 1.0).is_none() {
                return Err(format!("there is no f32 speed of {family:?}"));
            }
        }
        Ok(())
    }
}

fn speeds(format: DType, rows: &[(Family, &[(f64, f64)])]) -> Vec<Speed> {
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
        simple_ns: 0.02,
        divide_ns: 0.1,
        transcendental_ns: 0.35,
        convert_ns: vec![(DType::Bf16, 0.03), (DType::F16, 0.04)],
        products,
    }
}

/// A GPU from its data sheet: peaks in TFLOP/s (f32 without TF32; dense 16-bit), of which large
/// products reach about two thirds and small ones little. For planning; nothing was measured.
fn gpu(name: &str, board: &str, bandwidth: f64, peaks: &[(DType, f64)]) -> Target {
    let mut products = Vec::new();
    for &(format, tflops) in peaks {
        // A wider unit needs a larger product to fill it.
        let fill = if format == DType::F32 { 1.0 } else { 0.5 };
        for family in Family::ALL {
            let most = match family {
                Family::Gemm => 0.7,
                Family::Conv | Family::ConvDataGrad | Family::Attention => 0.5,
                Family::ConvFilterGrad | Family::AttentionGrad => 0.4,
            };
            let at = |share: f64| tflops * 1e3 * share * most;
            let points = vec![
                (32.0, at(0.01 * fill)),
                (256.0, at(0.25 * fill)),
                (1024.0, at(0.8 * fill)),
                (4096.0, at(1.0)),
            ];
            products.push(Speed { family, format, points });
        }
    }
    Target {
        name: name.into(),
        device: "cuda".into(),
        source: format!("data sheet of the {board}, for planning"),
        bandwidth_gbs: bandwidth * 0.85,
        // A data sheet gives the size of the second-level cache and not its speed.
        cache: None,
        launch_ns: 2500.0,
        simple_ns: 2e-4,
        divide_ns: 8e-4,
        transcendental_ns: 8e-4,
        // Conversion is hidden behind memory; what has products is also stored.
        convert_ns: [DType::F16, DType::Bf16]
            .into_iter()
            .filter(|d| peaks.iter().any(|p| p.0 == *d))
            .map(|d| (d, 0.0))
            .collect(),
        products,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_descriptions_are_sound() {
        for name in Target::SHIPPED {
            let t = Target::shipped(name).unwrap();
            t.check().unwrap();
            assert_eq!(t.name, name);
            let text = serde_json::to_string(&t).unwrap();
            assert_eq!(serde_json::from_str::<Target>(&text).unwrap(), t);
        }
        assert!(Target::shipped("abacus").is_none());
    }

    #[test]
    fn a_gpu_is_described_by_its_capability() {
        let name = |major, minor| Target::for_capability(major, minor).map(|t| t.name);
        assert_eq!(name(9, 0).as_deref(), Some("sm_90"));
        assert_eq!(name(8, 9).as_deref(), Some("sm_80"));
        assert_eq!(name(12, 0).as_deref(), Some("sm_100"));
        assert_eq!(name(6, 1), None);
        let volta = Target::for_capability(7, 0).unwrap();
        assert_eq!(volta.convert(DType::Bf16), None);
        assert_eq!(volta.gflops(Family::Gemm, DType::Bf16, 64.0), None);
        assert!(
            volta.gflops(Family::Gemm, DType::F16, 1024.0)
                > volta.gflops(Family::Gemm, DType::F32, 1024.0)
        );
    }

    #[test]
    fn a_step_that_fits_the_cache_moves_at_its_speed() {
        let mut t = Target::shipped("cpu-generic").unwrap();
        t.bandwidth_gbs = 10.0;
        t.cache = Some(Cache { bytes: 100, bandwidth_gbs: 50.0 });
        assert_eq!(t.clone().for_working_set(100).bandwidth_gbs, 50.0);
        assert_eq!(t.clone().for_working_set(101).bandwidth_gbs, 10.0);
        t.cache = None;
        assert_eq!(t.for_working_set(1).bandwidth_gbs, 10.0);
    }

    #[test]
    fn speed_is_interpolated_between_points_and_held_outside() {
        let mut t = Target::shipped("cpu-generic").unwrap();
        t.products = vec![Speed {
            family: Family::Gemm,
            format: DType::F32,
            points: vec![(10.0, 1.0), (1000.0, 3.0)],
        }];
        assert_eq!(t.gflops(Family::Gemm, DType::F32, 1.0), Some(1.0));
        assert!((t.gflops(Family::Gemm, DType::F32, 100.0).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(t.gflops(Family::Gemm, DType::F32, 1e6), Some(3.0));
        assert_eq!(t.gflops(Family::Gemm, DType::Bf16, 1.0), None);
        assert!(t.check().is_err());
    }
}
