//! The seam between the compiler and the runtimes: element formats, scalar programs, the plan
//! schema, its validation and its file format.
//!
//! Invariant: this crate knows nothing of the IR and nothing of a device. The compiler writes a
//! [`Plan`]; a runtime reads one and trusts nothing in it until [`Plan::validate`] has passed.

mod along;
mod digest;
mod dtype;
mod file_kind;
mod interpret;
mod json;
mod liveness;
mod needs;
mod precision;
mod print;
mod program;
mod ranges;
mod recurrence;
mod schema;
pub mod table;
mod target;
mod tensor_header;
pub mod units;
mod uses;
mod validate;
mod watch;
pub mod words;

pub use along::{CumSum, LastIndex, TopK};
pub use digest::Seal;
pub use dtype::{DType, Facts, Kind};
pub use file_kind::{FileKind, instead_of};
pub use interpret::{Value, interpret};
pub use needs::{Is, Need, needs};
pub use precision::{Precision, round_tf32};
pub use program::{BinaryOp, InPort, Instr, OutPort, Program, ReduceOp, Reg, RegInfo, UnaryOp};
pub use ranges::{COUNTED, Histogram, RANGES_VERSION, Range, Ranges, Share};
pub use recurrence::{Recurrence, RecurrenceGrad, RecurrenceShape, RecurrentCell, Squash, Way};
pub use schema::*;
pub use target::{Cache, Family, SHARED_WORK, Speed, Target};
pub use tensor_header::{HeldTensor, TensorHeader};
pub use validate::{ALIGN, MAX_BYTES, MAX_CODE, MAX_ELEMENTS, MAX_RANK, PlanError};
pub use watch::{Side, Watch};
