//! What happens to a tile of a product before it leaves the cache.

/// A rectangle of a result, in f32, still in cache.
///
/// For matrix products `row0` and `col0` count rows and columns of D; for convolutions a row is an
/// output channel and a column a pixel of the output plane.
#[derive(Debug)]
pub struct Tile {
    /// Index of the matrix (`batch[0] * batch_sizes[1] + batch[1]`) or image.
    pub batch: usize,
    pub row0: usize,
    pub col0: usize,
    pub rows: usize,
    pub cols: usize,
    pub(crate) data: *mut f32,
    pub(crate) ld: usize,
}

impl Tile {
    /// Row `i` of the tile (row `row0 + i` of the result), `cols` long.
    ///
    /// # Panics
    /// If `i` is not below `rows`.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of a tile with {}", self.rows);
        // SAFETY: the kernel that made the tile owns these elements while it exists.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.ld), self.cols) }
    }
}

/// A transformation of finished sums: bias, activation, residual, copies to other tensors.
///
/// Called once for every part of the result, from any thread, with tiles of any shape; it must not
/// use rayon.
pub trait Epilogue: Sync {
    fn apply(&self, tile: &mut Tile);
}

impl<F: Fn(&mut Tile) + Sync> Epilogue for F {
    fn apply(&self, tile: &mut Tile) {
        self(tile);
    }
}
