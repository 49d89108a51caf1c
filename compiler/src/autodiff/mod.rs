//! From a forward graph to the joint graph of a training step: backward, clipping, accumulation,
//! optimizer, moving average, loss scale.

mod backward;
mod build;
mod counted;
mod loss;
mod machine;
mod names;
mod soft;
mod spec;
mod stops;
mod update;
mod vanish;

pub use backward::backward;
pub use loss::{COUNT as LOSS_COUNT, SUM as LOSS_SUM, attach_loss};
pub use spec::{
    ClassAxis, LossSpec, LrCurve, LrSpec, Normalize, OnNonfinite, OptimizerSpec, ScaleSpec,
    TrainSpec,
};
pub use stops::without_stops;
pub use update::{STOPPED, joint};
pub use vanish::vanishing;
