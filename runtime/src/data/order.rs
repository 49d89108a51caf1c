//! Which rows are drawn when.

use crate::cpu::rows::philox;

/// Orders of a number of rows, fixed by a seed.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    rows: u64,
}

impl Order {
    pub fn new(seed: u64, rows: u64) -> Order {
        Order { seed, rows }
    }

    /// A permutation of `0..n` (Fisher and Yates), `stream` for `stream`.
    fn shuffled(&self, n: u64, stream: u64) -> Vec<u64> {
        let mut list: Vec<u64> = (0..n).collect();
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        for i in (1..n).rev() {
            let w = philox([i as u32, (i >> 32) as u32, stream as u32, 0x5248_5546], key);
            // The high half of a 64 x 64 bit product: uniform to within 2^-64 n.
            let x = (u64::from(w[0]) << 32) | u64::from(w[1]);
            let j = ((u128::from(x) * u128::from(i + 1)) >> 64) as u64;
            list.swap(i as usize, j as usize);
        }
        list
    }

    /// Rows split into training and test rows: at random, but the same for every epoch.
    fn split(&self) -> Vec<u64> {
        self.shuffled(self.rows, 0)
    }

    /// The training rows of an epoch; `epoch`: `None` keeps them in the order of the data.
    pub fn epoch(&self, train: u64, split: bool, epoch: Option<u64>) -> Vec<u64> {
        let mut rows: Vec<u64> =
            if split { self.split()[..train as usize].to_vec() } else { (0..train).collect() };
        match epoch {
            Some(e) => {
                let order = self.shuffled(train, e + 1);
                rows = order.into_iter().map(|i| rows[i as usize]).collect();
            }
            None => rows.sort_unstable(),
        }
        rows
    }

    /// The rows held back.
    pub fn test(&self, train: u64, test: u64) -> Vec<u64> {
        if test == 0 {
            return vec![];
        }
        let mut rows = self.split()[train as usize..(train + test) as usize].to_vec();
        rows.sort_unstable();
        rows
    }
}
