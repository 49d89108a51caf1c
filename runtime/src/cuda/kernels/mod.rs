//! Kernels that are not row programs, as text: gathered rows, pooling, attention, convolutions and
//! products that no library takes.
//!
//! Each `lower_…` is a pure function from a step of a valid plan to launches. What differs from
//! shape to shape goes into arguments, what the inner loops need (formats, tile sizes, which axes
//! are contiguous) into the text, so that layers share compiled kernels.

mod along;
mod attention;
mod conv;
mod end;
mod gather;
mod gemm;
mod pool;
mod product;
mod samples;
mod text;

pub use along::{lower_cumsum, lower_last_index, lower_top_k};
pub use attention::{lower_attention, lower_attention_grad};
pub use conv::lower_conv;
pub use gather::{lower_gather, lower_scatter_add};
pub use gemm::lower_gemm_fallback;
pub use pool::{lower_max_pool, lower_max_pool_grad};
pub use samples::samples;

#[cfg(test)]
mod tests;
