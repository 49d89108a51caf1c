//! The operations: one file each (a family shares one), one line each in the list below.
//!
//! An operation is defined here once. Everything else asks the definition: the verifier its
//! signature, autodiff its gradient, the e-graph its linearity and numeric class, the schedule its
//! row program. Broadcasting is explicit: operands of an elementwise op have equal shapes.

pub mod builder;
pub mod grad;
pub mod range;
mod spec;

pub use builder::ProgramBuilder;
pub use grad::GradCx;
pub use range::{Bounds, Known, Pole, Reach};
pub use spec::{AxisMap, RowSpec};

use crate::ir::view::View;
use crate::ir::{Attr, AttrMap, TensorType};
use precast_plan::{Math, RecurrenceShape};

/// How an operation behaves numerically; decides which formats are legal and what a policy paints.
/// The four classes of TensorFlow's and PyTorch's lists, plus two that those leave implicit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NumericClass {
    /// Matrix products, convolutions, attention: gain from 16-bit inputs, accumulate in f32.
    Product,
    /// Moves, selects or compares elements: exact in any format.
    Movement,
    /// Elementwise arithmetic: one rounding at the store.
    Pointwise,
    /// Sums, statistics, exponentials, losses: f32 inside; formats only at the edges.
    Sensitive,
    /// Optimizer, loss-scale machine, counters: f32 edges too.
    State,
    /// Not a real computation (inputs, constants, integers).
    Leaf,
}

/// In which operands an operation is linear, for moving a scale factor through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linear {
    No,
    /// In each of these operands alone, the others held fixed: scaling one scales the results.
    Each(&'static [usize]),
    /// In all real operands at once: scaling all scales the results.
    All,
}

/// What running an operation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lowering {
    /// Names storage; runs nothing.
    Leaf,
    /// A strided view of its operand where strides can say it, else a copy.
    View,
    /// A row program ([`OpDef::row_spec`], [`OpDef::emit`]).
    Rows,
    /// Copies every operand into its part of the result.
    Assemble,
    /// A kernel of its own in every backend.
    Kernel,
}

/// The definition of an operation.
pub trait OpDef: OpMeta {
    /// Result types from operand types: shapes and kinds; real results are f32 here, and the
    /// precision pass narrows them. Must accept operands of any real format.
    ///
    /// # Errors
    /// What is wrong with the operands, in words.
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String>;

    fn class(&self) -> NumericClass;

    fn lowering(&self) -> Lowering;

    fn linear(&self) -> Linear {
        Linear::No
    }

    /// Bounds of the first result's elements, where it is real: every finite result of operands within
    /// theirs lies inside.
    fn bounds(&self, _k: &Known) -> Bounds {
        Bounds::ALL
    }

    /// How far the first result reaches, where it is real. By default as far as the farthest operand
    /// for arithmetic and movement, and no farther than ordinary numbers for all else: products,
    /// normalisations.
    fn reach(&self, k: &Known) -> Reach {
        match self.class() {
            NumericClass::Pointwise | NumericClass::Movement => Reach::Times(k.farthest()),
            _ => Reach::ORDINARY,
        }
    }

    /// An operand at whose zeros the result is 0, however large the others are.
    fn masked_by(&self) -> Option<usize> {
        None
    }

    /// Operands that are not stored in a format of narrow range, unless their bounds keep away from
    /// where rounding them would be an error of any size.
    fn poles(&self) -> &'static [Pole] {
        &[]
    }

    /// Operands of whose elements only the differences count, such as a softmax's: what is added to
    /// them counts in full however large they are.
    fn compares(&self) -> &'static [usize] {
        &[]
    }

    /// Operands that are stored in f32 whatever reads them, with why.
    fn reads_f32(&self) -> &'static [(usize, &'static str)] {
        &[]
    }

    /// The cotangent of every operand (`None`: does not depend on it, or not differentiable by
    /// nature, such as an integer). Called only where some result has a cotangent.
    ///
    /// # Errors
    /// Why the operation cannot be differentiated, in words for the model's author.
    fn gradient(&self, _cx: &mut GradCx) -> Result<Grads, String> {
        Err(format!("`{}` has no gradient", self.name()))
    }

    /// `Rows` only: the iteration space, and where each operand's and result's axes lie in it.
    fn row_spec(&self, _x: &[&TensorType], _y: &[&TensorType]) -> RowSpec {
        panic!("`{}` is not a row program", self.name())
    }

    /// `Rows` only: appends instructions; `x` holds the loaded operands, the result one register
    /// per result.
    fn emit(&self, _b: &mut ProgramBuilder, _x: &[precast_plan::Reg]) -> Vec<precast_plan::Reg> {
        panic!("`{}` is not a row program", self.name())
    }

    /// `Assemble` only: where each operand lies in the result; elements that no operand covers are
    /// zero.
    fn parts(&self, _x: &[&TensorType]) -> Vec<Part> {
        panic!("`{}` is not assembled", self.name())
    }

    /// `View` only: the result as a view, given its operand as one; `None` where it takes a copy.
    fn view(&self, _x: &View, _y: &TensorType) -> Option<View> {
        None
    }

    /// Why a result is stored in f32 whatever reads it, by the nature of the operation.
    fn stored_f32(&self, _result: usize) -> Option<&'static str> {
        None
    }

    /// `Kernel` only, other than products: whether it reads and writes any strides, so that its
    /// results may be stored in another order, or as parts of something larger.
    fn any_strides(&self) -> bool {
        false
    }

    /// Elements that the windows of a pool hold, all windows together; 0 of what has none.
    fn visited(&self, _x: &[&TensorType], _y: &[&TensorType]) -> usize {
        0
    }

    /// The sizes of a recurrence, whose steps wait for each other.
    fn recurrence(&self, _x: &[&TensorType]) -> Option<RecurrenceShape> {
        None
    }

    /// [`NumericClass::Sensitive`] kernels only: results that may be stored in 16 bits; `None`: the
    /// first, where it has the extents of the first operand.
    fn narrow(&self) -> Option<&'static [usize]> {
        None
    }

    /// Floating-point operations of a product (2 per multiply-add); 0 where bytes are what count.
    fn flops(&self, _x: &[&TensorType], _y: &[&TensorType]) -> f64 {
        0.0
    }
}

/// Element `k` of an operand is element `starts + k · steps` of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub starts: Vec<usize>,
    pub steps: Vec<i64>,
}

/// Cotangents of the operands, in operand order.
pub type Grads = Vec<Option<crate::ir::ValueId>>;

/// Name and attributes; implemented by [`op!`].
pub trait OpMeta {
    fn name(&self) -> &'static str;
    fn attrs(&self) -> Vec<(&'static str, Attr)>;
}

/// Construction from text; implemented by [`op!`].
pub trait FromAttrs: Sized {
    const NAME: &'static str;
    fn from_attrs(attrs: &mut AttrMap) -> Result<Self, String>;
}

/// Declares the struct of an operation: `op! { /// doc  Name = "mnemonic" { attr: Type, … } }`.
/// Attributes behind `or` have a default, which is not written.
#[macro_export]
macro_rules! op {
    ($(#[$doc:meta])* $ty:ident = $name:literal { $($(#[$fdoc:meta])* $field:ident : $fty:ty),* $(,)? }
        $(or { $($(#[$odoc:meta])* $ofield:ident : $oty:ty),* $(,)? })?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $ty { $($(#[$fdoc])* pub $field: $fty,)* $($($(#[$odoc])* pub $ofield: $oty),*)? }
        impl $crate::ops::OpMeta for $ty {
            fn name(&self) -> &'static str { $name }
            fn attrs(&self) -> Vec<(&'static str, $crate::ir::Attr)> {
                #[allow(unused_imports)] // an op without attributes needs neither
                use $crate::ir::AttrValue as _;
                #[allow(unused_mut)] // as above
                let mut attrs = vec![$((stringify!($field), self.$field.to_attr())),*];
                $($(if self.$ofield != <$oty>::default() {
                    attrs.push((stringify!($ofield), self.$ofield.to_attr()));
                })*)?
                attrs
            }
        }
        impl $crate::ops::FromAttrs for $ty {
            const NAME: &'static str = $name;
            fn from_attrs(_attrs: &mut $crate::ir::AttrMap) -> Result<Self, String> {
                Ok($ty {
                    $($field: _attrs.take(stringify!($field))?,)*
                    $($($ofield: _attrs.take_or_default(stringify!($ofield))?),*)?
                })
            }
        }
    };
}

macro_rules! ops {
    ($($module:ident: $($ty:ident),+;)*) => {
        $(pub mod $module; pub use $module::{$($ty),+};)*

        /// Any operation.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op { $($($ty($ty)),+),* }

        impl Op {
            /// Mnemonics of all operations, in list order.
            pub const NAMES: &'static [&'static str] = &[$($($ty::NAME),+),*];

            pub fn def(&self) -> &dyn OpDef {
                match self { $($(Op::$ty(op) => op),+),* }
            }

            /// Position in [`Op::NAMES`].
            pub fn kind_index(&self) -> usize {
                let name = self.name();
                Op::NAMES.iter().position(|n| *n == name).expect("every op is in the list")
            }

            /// Builds the operation from its mnemonic and attributes.
            ///
            /// # Errors
            /// Unknown mnemonic; missing, mistyped or unknown attribute.
            pub fn parse(name: &str, mut attrs: AttrMap) -> Result<Op, String> {
                let op = match name {
                    $($($ty::NAME => Op::$ty($ty::from_attrs(&mut attrs)?),)+)*
                    _ => return Err(format!("unknown operation `{name}`")),
                };
                match attrs.0.keys().next() {
                    None => Ok(op),
                    Some(k) => Err(format!("`{name}` has no attribute `{k}`")),
                }
            }
        }

        $($(impl From<$ty> for Op { fn from(op: $ty) -> Op { Op::$ty(op) } })+)*
    };
}

ops! {
    leaf: Input, Var, Const, Iota;
    unary: Unary;
    binary: Binary;
    select: Select;
    cast: Cast;
    scale: Scale, ScaleBy;
    activation: Activate, ActivateGrad;
    dropout: Dropout;
    movement: Reshape, Transpose, Broadcast, Slice;
    concat: Concat;
    pad: Pad;
    reduce: Reduce;
    reduce_int: ReduceInt;
    extremum: Extremum, ExtremumGrad;
    log_sum_exp: LogSumExp, LogSumExpGrad;
    matmul: MatMul;
    conv: Conv2d, Conv2dDataGrad, Conv2dFilterGrad;
    pool: MaxPool2d, MaxPool2dGrad;
    gather: Gather, ScatterAdd, LastIndex;
    stop_gradient: StopGradient;
    along: CumSum, TopK;
    softmax: Softmax, SoftmaxGrad;
    layer_norm: LayerNorm, LayerNormGrad, LayerNormParamGrad;
    batch_norm: BatchNorm, BatchNormGrad;
    cross_entropy: CrossEntropy, CrossEntropyGrad;
    attention: Attention, AttentionGrad;
    recurrence: Recurrence, RecurrenceGrad;
    grad_stats: GradStats;
    optimizer: SgdUpdate, AdamUpdate, EmaUpdate;
}

impl Op {
    pub fn name(&self) -> &'static str {
        self.def().name()
    }
    pub fn class(&self) -> NumericClass {
        self.def().class()
    }
    pub fn lowering(&self) -> Lowering {
        self.def().lowering()
    }

    /// How f32 operands of a product are multiplied.
    pub fn math(&self) -> Math {
        match self {
            Op::MatMul(p) => p.math,
            Op::Conv2d(p) => p.math,
            Op::Conv2dDataGrad(p) => p.math,
            Op::Conv2dFilterGrad(p) => p.math,
            _ => Math::Exact,
        }
    }

    /// The same product multiplied another way; `None` where the operation has only one.
    pub fn with_math(&self, math: Math) -> Option<Op> {
        let mut op = self.clone();
        match &mut op {
            Op::MatMul(p) => p.math = math,
            Op::Conv2d(p) => p.math = math,
            Op::Conv2dDataGrad(p) => p.math = math,
            Op::Conv2dFilterGrad(p) => p.math = math,
            _ => return None,
        }
        Some(op)
    }
}

crate::word_attr!(Math { Math::Exact = "exact", Math::Tf32 = "tf32" });

/// Checks operand count and kinds: one letter an operand, `r`eal, `i`nt, `b`ool, `.` any.
pub(crate) fn signature(x: &[&TensorType], kinds: &str) -> Result<(), String> {
    use precast_plan::Kind;
    if x.len() != kinds.len() {
        return Err(format!("takes {} operands, not {}", kinds.len(), x.len()));
    }
    for (i, (t, k)) in x.iter().zip(kinds.chars()).enumerate() {
        fits(t)?;
        let want = match k {
            'r' => Kind::Real,
            'i' => Kind::Int,
            'b' => Kind::Bool,
            _ => continue,
        };
        if t.kind() != want {
            return Err(format!("operand {i} is {t}, not {want}"));
        }
    }
    Ok(())
}

/// Refuses a tensor too large for any machine.
pub(crate) fn fits(t: &TensorType) -> Result<(), String> {
    if t.shape.rank() > precast_plan::MAX_RANK {
        return Err(format!("{t} has more than {} axes", precast_plan::MAX_RANK));
    }
    if t.shape.is_addressable() { Ok(()) } else { Err(format!("{t} is too large")) }
}

/// Checks that operands have one shape.
pub(crate) fn same_shape(x: &[&TensorType]) -> Result<(), String> {
    match x.iter().find(|t| t.shape != x[0].shape) {
        None => Ok(()),
        Some(t) => Err(format!("operand shapes {} and {} differ", x[0].shape, t.shape)),
    }
}
