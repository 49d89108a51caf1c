//! From a forward graph to the joint graph of a training step: backward, clipping, accumulation,
//! optimizer, moving average, loss scale.

mod backward;
mod build;
mod loss;
mod machine;
mod names;
mod soft;
mod spec;
mod stops;
mod update;
mod vanish;

pub use backward::backward;
pub use loss::attach_loss;
pub use spec::{ClassAxis, LossSpec, LrCurve, LrSpec, OptimizerSpec, ScaleSpec, TrainSpec};
pub use stops::without_stops;
pub use update::joint;
pub use vanish::vanishing;
