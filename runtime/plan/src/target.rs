//! What is known of a target: how fast its kernels are. A plain value that is read from and
//! written to TOML, so that a calibrated description can be used on another machine.

use crate::dtype::DType;
use crate::precision::Precision;
use crate::program::UnaryOp;
use crate::schema::TargetSummary;
use serde::{Deserialize, Serialize};

mod shipped;

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
    pub format: Precision,
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
    /// Handing a row program of [`SHARED_WORK`] or more to the other threads, beside its start, ns.
    /// Products have it in their speeds. Absent where it is unknown or there are no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover_ns: Option<f64>,
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

/// Instructions, over all elements, of a row program from which on the CPU backend shares it between
/// threads.
pub const SHARED_WORK: u64 = 1 << 16;

impl Target {
    /// Starting a row program of so many instructions over all its elements, ns.
    pub fn start_ns(&self, instructions: u64) -> f64 {
        let shared = self.handover_ns.filter(|_| instructions > SHARED_WORK);
        self.launch_ns + shared.unwrap_or(0.0)
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

    /// Multiples of this many bytes on which the rows of matrices begin where products are fast: the
    /// loads that feed tensor cores take 16. 0 where it does not matter.
    pub fn row_bytes(&self) -> usize {
        if self.device == "cuda" { 16 } else { 0 }
    }

    pub fn summary(&self) -> TargetSummary {
        TargetSummary { name: self.name.clone(), device: self.device.clone() }
    }

    /// Whether the target multiplies matrices in a precision.
    pub fn multiplies(&self, precision: Precision) -> bool {
        self.products.iter().any(|s| s.family == Family::Gemm && s.format == precision)
    }

    /// The same target as if it could not multiply in a precision.
    pub fn without(mut self, precision: Precision) -> Target {
        self.products.retain(|s| s.format != precision);
        self
    }

    /// Speed in GFLOP/s (FLOP/ns) of a product of this size; `None` where the target has no such
    /// kernel.
    pub fn gflops(&self, family: Family, format: impl Into<Precision>, size: f64) -> Option<f64> {
        let format = format.into();
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
            Exp | Expm1 | Log | Log1p | Sin | Cos | Tanh | Erf | Sigmoid | Tan | Asin | Acos
            | Atan | Sinh | Cosh | Asinh | Acosh | Atanh => self.transcendental_ns,
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
        let handover = self.handover_ns.map(|ns| ("handover_ns", ns));
        let conversions = self.convert_ns.iter().map(|(_, ns)| ("convert_ns", *ns));
        for (what, x) in times.into_iter().chain(handover).chain(conversions) {
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
            if self.gflops(family, Precision::F32, 1.0).is_none() {
                return Err(format!("there is no f32 speed of {family:?}"));
            }
        }
        Ok(())
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
    fn boards_multiply_what_their_tensor_cores_take() {
        use Precision::{Bf16, F16, F32, Fp8, Tf32};
        let all = |name: &str| {
            let t = Target::shipped(name).unwrap();
            let stored = |p: &Precision| match p {
                F32 | Tf32 => true,
                F16 => t.convert(DType::F16).is_some(),
                Bf16 => t.convert(DType::Bf16).is_some(),
                Fp8 => [DType::F8e4m3, DType::F8e5m2].iter().all(|&d| t.convert(d).is_some()),
            };
            Precision::ALL
                .into_iter()
                .filter(|&p| t.multiplies(p))
                .filter(stored)
                .collect::<Vec<_>>()
        };
        assert_eq!(all("v100"), [F32, F16]);
        assert_eq!(all("a100"), [F32, Tf32, F16, Bf16]);
        for name in ["h100", "h200", "b200", "sm_90", "sm_100"] {
            assert_eq!(all(name), [F32, Tf32, F16, Bf16, Fp8]);
        }
        for name in ["cpu-generic", "cpu-avx512bf16"] {
            assert_eq!(all(name), [F32, F16, Bf16]);
        }
        // Large products are the faster the narrower their operands are.
        let h100 = Target::shipped("h100").unwrap();
        let large = [F32, Tf32, Bf16, Fp8].map(|p| h100.gflops(Family::Gemm, p, 4096.0).unwrap());
        assert!(large.is_sorted(), "{large:?}");
        assert!(!h100.without(Fp8).multiplies(Fp8));
    }

    #[test]
    fn a_description_is_of_some_gpus() {
        let h200 = |name: &str| Target::describes(name, "NVIDIA H200", (9, 0));
        assert_eq!((h200("h200"), h200("sm_90")), (Some(true), Some(true)));
        assert_eq!(
            (h200("b200"), h200("h100"), h200("sm_80")),
            (Some(false), Some(false), Some(false))
        );
        assert_eq!((h200("cpu-generic"), h200("mine")), (None, None));
        assert_eq!(Target::describes("h100", "NVIDIA H100 PCIe", (9, 0)), Some(false));
        assert_eq!(Target::describes("sm_80", "NVIDIA GeForce RTX 3090", (8, 6)), Some(true));
    }

    #[test]
    fn a_gpu_is_described_by_its_board_where_its_name_says_which() {
        let name = |n: &str, c| Target::for_gpu(n, c).map(|t| t.name);
        assert_eq!(name("NVIDIA H200", (9, 0)).as_deref(), Some("h200"));
        assert_eq!(name("NVIDIA H100 80GB HBM3", (9, 0)).as_deref(), Some("h100"));
        assert_eq!(name("NVIDIA H100 PCIe", (9, 0)).as_deref(), Some("sm_90"));
        assert_eq!(name("Tesla V100-SXM2-16GB", (7, 0)).as_deref(), Some("v100"));
        assert_eq!(name("NVIDIA A100-SXM4-80GB", (8, 0)).as_deref(), Some("a100"));
        assert_eq!(name("NVIDIA L40S", (8, 9)).as_deref(), Some("sm_80"));
        assert_eq!(name("GeForce GTX 1080", (6, 1)), None);
    }

    #[test]
    fn an_architecture_is_its_first_board() {
        for (sm, board) in [("sm_70", "v100"), ("sm_80", "a100"), ("sm_90", "h100")] {
            let mut t = Target::shipped(sm).unwrap();
            t.name = board.into();
            assert_eq!(t, Target::shipped(board).unwrap());
        }
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
    fn a_program_that_threads_share_is_handed_over() {
        let mut t = Target::shipped("cpu-generic").unwrap();
        assert_eq!(t.start_ns(u64::MAX), t.launch_ns);
        (t.launch_ns, t.handover_ns) = (10.0, Some(100.0));
        assert_eq!(t.start_ns(SHARED_WORK), 10.0);
        assert_eq!(t.start_ns(SHARED_WORK + 1), 110.0);
        t.handover_ns = Some(f64::NAN);
        assert!(t.check().unwrap_err().contains("handover_ns"));
    }

    #[test]
    fn speed_is_interpolated_between_points_and_held_outside() {
        let mut t = Target::shipped("cpu-generic").unwrap();
        t.products = vec![Speed {
            family: Family::Gemm,
            format: Precision::F32,
            points: vec![(10.0, 1.0), (1000.0, 3.0)],
        }];
        assert_eq!(t.gflops(Family::Gemm, DType::F32, 1.0), Some(1.0));
        assert!((t.gflops(Family::Gemm, DType::F32, 100.0).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(t.gflops(Family::Gemm, DType::F32, 1e6), Some(3.0));
        assert_eq!(t.gflops(Family::Gemm, DType::Bf16, 1.0), None);
        assert!(t.check().is_err());
    }
}
