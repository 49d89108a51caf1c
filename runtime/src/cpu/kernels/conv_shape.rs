//! The shape of a convolution, and which source positions each target position reads.

/// A convolution: `x: [n, cin, h, w]`, `w: [cout, cin / groups, kh, kw]`, `y: [n, cout, oh, ow]`,
/// all dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    pub n: usize,
    pub cin: usize,
    pub cout: usize,
    pub groups: usize,
    /// Height and width of x.
    pub input: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Zeros before and after, for height and for width.
    pub pad: [[usize; 2]; 2],
}

impl Conv2d {
    /// Height and width of y.
    ///
    /// # Panics
    /// If the kernel does not fit into the padded input.
    pub fn output(&self) -> [usize; 2] {
        std::array::from_fn(|d| {
            let padded = self.input[d] + self.pad[d][0] + self.pad[d][1];
            let extent = (self.kernel[d] - 1) * self.dilation[d] + 1;
            assert!(extent <= padded, "kernel extent {extent} in a padded input of {padded}");
            (padded - extent) / self.stride[d] + 1
        })
    }

    pub(crate) fn cin_group(&self) -> usize {
        self.cin / self.groups
    }

    pub(crate) fn cout_group(&self) -> usize {
        self.cout / self.groups
    }

    pub(crate) fn check(&self) {
        assert!(
            self.groups > 0
                && self.cin.is_multiple_of(self.groups)
                && self.cout.is_multiple_of(self.groups),
            "channels divide into groups"
        );
        assert!(self.stride.iter().chain(&self.dilation).all(|&s| s > 0), "strides from 1");
    }
}

/// One dimension of one phase: target position `first + step_out * i` for `i < count` reads source
/// positions `step_in * i + offset` for each tap.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub first: usize,
    pub count: usize,
    /// (index in the kernel, source offset)
    pub taps: Vec<(usize, isize)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub step_out: usize,
    pub step_in: usize,
    pub phases: Vec<Phase>,
    /// Smallest and largest offset of any tap.
    pub min: isize,
    pub max: isize,
}

impl Axis {
    fn new(step_out: usize, step_in: usize, phases: Vec<Phase>) -> Axis {
        let offsets = || phases.iter().flat_map(|p| p.taps.iter().map(|t| t.1));
        let min = offsets().min().unwrap_or(0);
        let max = offsets().max().unwrap_or(0);
        Axis { step_out, step_in, phases, min, max }
    }

    pub fn forward(c: &Conv2d, d: usize) -> Axis {
        let taps = (0..c.kernel[d])
            .map(|t| (t, (t * c.dilation[d]) as isize - c.pad[d][0] as isize))
            .collect();
        let phase = Phase { first: 0, count: c.output()[d], taps };
        Axis::new(1, c.stride[d], vec![phase])
    }

    /// `x[i]` met `y[o]` at tap `t` where `i + pad = o stride + t dilation`.
    pub fn backward(c: &Conv2d, d: usize) -> Axis {
        let s = c.stride[d];
        let phases = (0..s.min(c.input[d]))
            .map(|first| {
                let taps = (0..c.kernel[d])
                    .map(|t| (t, (first + c.pad[d][0]) as isize - (t * c.dilation[d]) as isize))
                    .filter(|(_, o)| o.rem_euclid(s as isize) == 0)
                    .map(|(t, o)| (t, o.div_euclid(s as isize)))
                    .collect();
                Phase { first, count: (c.input[d] - first).div_ceil(s), taps }
            })
            .collect();
        Axis::new(s, 1, phases)
    }

    /// Source positions that `count` consecutive grid positions read.
    pub fn extent(&self, count: usize) -> usize {
        (count - 1) * self.step_in + (self.max - self.min) as usize + 1
    }
}
