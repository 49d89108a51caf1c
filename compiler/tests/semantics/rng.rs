//! Seeded random numbers, the same on every machine.

use precast_compiler::ir::Shape;
use precast_compiler::reference::Tensor;

/// SplitMix64 (Steele et al., 2014).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.next() >> 11) as f64 * 2f64.powi(-53))
    }

    /// Reals in [low, high), exact in f32.
    pub fn reals(&mut self, shape: impl Into<Shape>, low: f64, high: f64) -> Tensor {
        let shape = shape.into();
        let v: Vec<f64> =
            (0..shape.elements()).map(|_| f64::from(self.uniform(low, high) as f32)).collect();
        Tensor::real(shape, v)
    }
}
