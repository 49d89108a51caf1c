//! The graph: an arena of nodes in topological order.
//!
//! Invariant: the inputs of a node are values defined before it, so index order is a topological
//! order. Before precision is chosen every real value is f32 and stands for a real number; after
//! it, a value's dtype is the format it is stored in. There is one IR for both.

pub mod attr;
pub mod consts;
mod graph;
pub mod reach;
mod types;
pub mod verify;
pub mod view;

pub use attr::{Attr, AttrMap, AttrValue, Real};
pub use consts::ConstData;
pub use graph::{
    Graph, Node, NodeId, Phase, Region, Result_, SEED, Value, ValueId, Var, VarInit, VarRole,
};
pub use types::{Shape, TensorType};
