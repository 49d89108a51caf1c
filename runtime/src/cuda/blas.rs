//! Matrix products by cuBLASLt.
//!
//! A product is described once, when the plan is loaded: the library proposes algorithms, the
//! fastest of them is measured and remembered in a file of the cache, and from then on the step
//! runs that one, so that results do not depend on the run. Sums are f32 throughout: partial sums
//! of a split product too.

mod choose;
mod told;

pub use told::tell;

use super::api::{Candidate, CublasLt, Status};
use super::cache::Cache;
use super::driver::{Context, Memory, Stream};
use super::launch::Place;
use super::lower::Answer;
use super::measure::Watch;
use super::product::{Fused, Matrix, Product, Vector};
use crate::error::{Error, Result};
use cudarc::cublaslt::sys as lt;
use lt::cublasLtMatmulDescAttributes_t as Desc;
use lt::cublasLtMatmulPreferenceAttributes_t as Preference;
use lt::cublasLtMatrixLayoutAttribute_t as Layout;
use precast_plan::DType;
use precast_plan::units;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::env;
use std::ffi::c_void;
use std::sync::Arc;
use told::{data_type, word};

/// Set to `0`, the library's first proposal is taken and nothing is measured.
pub const TUNE_VARIABLE: &str = "PRECAST_CUDA_TUNE";

/// Bytes of workspace; what the library's documentation advises for Hopper.
const WORKSPACE: u64 = 32 << 20;
/// Proposals that are measured.
const PROPOSALS: usize = 8;
/// Partial sums of a split product are kept in f32; nothing is added in a narrower format.
const REDUCTIONS: u32 =
    lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// What a call needs of the library.
#[derive(Clone, Copy)]
struct Library {
    api: &'static CublasLt,
    handle: lt::cublasLtHandle_t,
    /// Addresses of the workspace and of the two constants.
    workspace: u64,
    constants: u64,
}

/// A handle of the library, its workspace, and what was measured before.
pub struct Blas {
    context: Arc<Context>,
    api: &'static CublasLt,
    handle: lt::cublasLtHandle_t,
    workspace: Memory,
    /// f32 0 and 1 on the device, for products whose factor is there.
    constants: Memory,
    cache: Cache,
    tune: bool,
    /// Products that will be captured are measured so, and what is chosen has been captured once.
    watch: Watch,
    version: usize,
    /// Algorithms that ran, and products of which none did, with the library's words.
    chosen: RefCell<BTreeMap<String, lt::cublasLtMatmulAlgo_t>>,
    refused: RefCell<BTreeMap<String, String>>,
    /// Proposals that were measured.
    measured: Cell<usize>,
}

// SAFETY: the handle may be used from any thread, one at a time.
unsafe impl Send for Blas {}

impl Blas {
    /// `captured`: whether products will run in a graph that was captured.
    ///
    /// # Errors
    /// `R0707` if the library refuses, `R0708` if there is no memory for its workspace.
    pub fn new(
        context: &Arc<Context>,
        api: &'static CublasLt,
        stream: &Stream,
        cache: Cache,
        captured: bool,
    ) -> Result<Blas> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is to a local; the context is current.
        check(unsafe { api.cublasLtCreate(&raw mut handle) }, "opening it")?;
        let memory = |bytes| -> Result<Memory> {
            if let Some(memory) = Memory::new(context, bytes)? {
                return Ok(memory);
            }
            let (need, free) = (units::bytes(bytes), units::bytes(context.memory()?.0));
            let text = format!("cuBLASLt needs {need} of device memory, and {free} are free");
            Err(Error::new("R0708", text).at(format!("cuda:{}", context.info.ordinal)))
        };
        let constants = memory(8)?;
        let values: Vec<u8> = [0.0f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        stream.upload(constants.address, &values)?;
        stream.synchronise()?;
        Ok(Blas {
            context: context.clone(),
            api,
            handle,
            workspace: memory(WORKSPACE)?,
            constants,
            cache,
            tune: env::var_os(TUNE_VARIABLE).is_none_or(|v| v != "0"),
            watch: Watch::new(context, captured),
            // SAFETY: takes no arguments.
            version: unsafe { api.cublasLtGetVersion() },
            chosen: RefCell::default(),
            refused: RefCell::default(),
            measured: Cell::new(0),
        })
    }

    fn library(&self) -> Library {
        let Blas { api, handle, .. } = *self;
        Library {
            api,
            handle,
            workspace: self.workspace.address,
            constants: self.constants.address,
        }
    }

    /// Bytes of device memory that every plan needs beside its own.
    pub const fn overhead() -> u64 {
        WORKSPACE + 8
    }

    /// Whether the library proposes anything for a product whose operands lie at such addresses, and
    /// has not refused to run it; of the addresses only the alignment counts.
    pub fn can(&self, p: &Product, address: &dyn Fn(Place) -> u64) -> Answer {
        let proposed = || -> std::result::Result<(), String> {
            let call = Call::new(self.library(), p, address)?;
            if let Some(why) = self.refused.borrow().get(&call.describe(p)) {
                return Err(why.clone());
            }
            match call.propose(1)?.is_empty() {
                true => Err("cuBLASLt proposes no algorithm".into()),
                false => Ok(()),
            }
        };
        proposed().map_or_else(Answer::No, |()| Answer::Yes)
    }

    /// What choosing took until now, for people who wait for it.
    pub fn effort(&self, products: usize) -> String {
        let (chosen, measured) = (self.chosen.borrow().len(), self.measured.get());
        format!(
            "{products} products of cuBLASLt, {chosen} algorithms, {measured} proposals measured"
        )
    }

    /// From now on [`Blas::can`] says no to a product, because [`Blas::prepare`] said why. The
    /// addresses are as for the former. `false` where it said no before.
    pub fn refuse(&self, p: &Product, address: &dyn Fn(Place) -> u64, why: &str) -> bool {
        Call::new(self.library(), p, address).is_ok_and(|call| {
            let why = format!("cuBLASLt refuses to run it: {why}");
            self.refused.borrow_mut().insert(call.describe(p), why).is_none()
        })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made by `new`; the owner has finished its streams.
        unsafe { self.api.cublasLtDestroy(self.handle) };
    }
}

fn check(status: Status, what: &str) -> Result<()> {
    said(status, what).map_err(|words| Error::new("R0707", words))
}

/// What the library declines, in words.
fn said(status: Status, what: &str) -> std::result::Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("cuBLASLt, {what}: {}", word(status))) }
}

/// Owns a descriptor of the library.
struct Owned<T: Copy> {
    raw: T,
    api: &'static CublasLt,
    destroy: unsafe fn(&CublasLt, T) -> Status,
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made together with this.
        unsafe { (self.destroy)(self.api, self.raw) };
    }
}

/// A described product on its addresses.
pub struct Call {
    api: &'static CublasLt,
    handle: lt::cublasLtHandle_t,
    desc: Owned<lt::cublasLtMatmulDesc_t>,
    a: Owned<lt::cublasLtMatrixLayout_t>,
    b: Owned<lt::cublasLtMatrixLayout_t>,
    d: Owned<lt::cublasLtMatrixLayout_t>,
    addresses: [u64; 4],
    /// Of the bias and of what is stored beside the result, where there are such.
    beside: Vec<u64>,
    /// Address of the factor on the device, and of 0 or 1 beside it.
    device_factors: Option<(u64, u64)>,
    beta: f32,
    algorithm: lt::cublasLtMatmulAlgo_t,
    workspace: u64,
}

// SAFETY: descriptors are used through their owner, one thread at a time.
unsafe impl Send for Call {}

impl Call {
    /// The handle and the workspace are those of the library, which the owner keeps alive.
    /// What the library refuses to be told of is an error in its words.
    fn new(
        library: Library,
        p: &Product,
        address: &dyn Fn(Place) -> u64,
    ) -> std::result::Result<Call, String> {
        let api = library.api;
        let compute = if p.tf32 {
            lt::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        } else {
            lt::cublasComputeType_t::CUBLAS_COMPUTE_32F
        };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe {
            api.cublasLtMatmulDescCreate(&raw mut raw, compute as u32, data_type(DType::F32))
        };
        said(status, "describing a product")?;
        let desc = Owned { raw, api, destroy: CublasLt::cublasLtMatmulDescDestroy };
        let set = |what: Desc, value: &[u8]| -> std::result::Result<(), String> {
            // SAFETY: the descriptor is alive and the value has the given length.
            let status = unsafe {
                let value_ptr = value.as_ptr().cast::<c_void>();
                api.cublasLtMatmulDescSetAttribute(desc.raw, what as u32, value_ptr, value.len())
            };
            said(status, &format!("{what:?}"))
        };
        let operation = |m: &Matrix| i32::from(m.transposed).to_ne_bytes();
        set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, &operation(&p.a))?;
        set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, &operation(&p.b))?;
        use lt::cublasLtEpilogue_t as E;
        let mut beside = vec![];
        let mut bias = |v: &Vector, kind: E| -> std::result::Result<(), String> {
            set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &(kind as u32).to_ne_bytes())?;
            // Without a type of its own it has D's, which is the only one the library adds.
            assert_eq!(v.dtype, p.d.dtype, "the lowering refuses other biases");
            let at = address(v.place);
            beside.push(at);
            set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.to_ne_bytes())
        };
        match &p.fused {
            Fused::None => {}
            Fused::Bias(v) => bias(v, E::CUBLASLT_EPILOGUE_BIAS)?,
            Fused::BiasRelu(v) => bias(v, E::CUBLASLT_EPILOGUE_RELU_BIAS)?,
            Fused::Sums { of_a: true, vector } => bias(vector, E::CUBLASLT_EPILOGUE_BGRADA)?,
            Fused::Sums { of_a: false, vector } => bias(vector, E::CUBLASLT_EPILOGUE_BGRADB)?,
            Fused::BiasGeluTanhAux { bias: v, .. } => bias(v, E::CUBLASLT_EPILOGUE_GELU_AUX_BIAS)?,
            Fused::GeluTanhGrad { .. } => {
                let kind = E::CUBLASLT_EPILOGUE_DGELU as u32;
                set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &kind.to_ne_bytes())?;
            }
        }
        // Its format is left unset, which is D's.
        if let Fused::BiasGeluTanhAux { aux, aux_ld, aux_batch_stride, .. }
        | Fused::GeluTanhGrad { aux, aux_ld, aux_batch_stride } = &p.fused
        {
            let at = address(*aux);
            beside.push(at);
            set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &at.to_ne_bytes())?;
            let ld = (*aux_ld as i64).to_ne_bytes();
            set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld)?;
            let stride = (*aux_batch_stride as i64).to_ne_bytes();
            set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, &stride)?;
        }
        let beta = if p.c.is_some() { 1.0 } else { 0.0 };
        // FP8 kernels take their factor as the scale of an operand.
        let eight = p.a.dtype.size() == 1;
        if let Some(alpha) = p.alpha.filter(|_| eight) {
            let at = address(alpha).to_ne_bytes();
            set(Desc::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &at)?;
        }
        let device_factors = p.alpha.filter(|_| !eight).map(|alpha| {
            let beta_at = library.constants + if p.c.is_some() { 4 } else { 0 };
            (address(alpha), beta_at)
        });
        if device_factors.is_some() {
            let mode = lt::cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE as u32;
            set(Desc::CUBLASLT_MATMUL_DESC_POINTER_MODE, &mode.to_ne_bytes())?;
        }
        let d_at = address(p.d.place);
        Ok(Call {
            api,
            handle: library.handle,
            a: layout(api, &p.a, p.batch)?,
            b: layout(api, &p.b, p.batch)?,
            d: layout(api, &p.d, p.batch)?,
            desc,
            addresses: [address(p.a.place), address(p.b.place), p.c.map_or(d_at, address), d_at],
            beside,
            device_factors,
            beta,
            algorithm: lt::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace: library.workspace,
        })
    }

    /// The library's proposals, best first, or the words by which it declines.
    fn propose(&self, most: usize) -> std::result::Result<Vec<Candidate>, String> {
        let api = self.api;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        said(unsafe { api.cublasLtMatmulPreferenceCreate(&raw mut raw) }, "stating wishes")?;
        let preference = Owned { raw, api, destroy: CublasLt::cublasLtMatmulPreferenceDestroy };
        let set = |what: Preference, value: &[u8]| -> std::result::Result<(), String> {
            // SAFETY: the descriptor is alive and the value has the given length.
            let status = unsafe {
                let value_ptr = value.as_ptr().cast::<c_void>();
                let bytes = value.len();
                api.cublasLtMatmulPreferenceSetAttribute(raw, what as u32, value_ptr, bytes)
            };
            said(status, &format!("{what:?}"))
        };
        let workspace = WORKSPACE as usize;
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace.to_ne_bytes())?;
        set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCTIONS.to_ne_bytes())?;
        let alignments = [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        for (what, at) in alignments.into_iter().zip(self.addresses) {
            set(what, &alignment(at).to_ne_bytes())?;
        }
        let mut list = vec![Candidate::NONE; most];
        let mut found = 0;
        // SAFETY: the descriptors are alive and the list has room for `most`.
        let status = unsafe {
            api.cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.desc.raw,
                self.a.raw,
                self.b.raw,
                self.d.raw,
                self.d.raw,
                preference.raw,
                most as i32,
                list.as_mut_ptr(),
                &raw mut found,
            )
        };
        said(status, "choosing an algorithm")?;
        list.truncate(found.max(0) as usize);
        list.retain(|c| c.status == 0);
        Ok(list)
    }

    /// Everything an algorithm's speed depends on; the key of what is remembered.
    fn describe(&self, p: &Product) -> String {
        let matrix = |m: &Matrix| {
            format!(
                "{}{} {}x{} ld {} batch {}",
                m.dtype,
                if m.transposed { " transposed" } else { "" },
                m.rows,
                m.columns,
                m.ld,
                m.batch_stride
            )
        };
        let finish = match &p.fused {
            Fused::None => "none".to_string(),
            Fused::Bias(v) => format!("bias {}", v.dtype),
            Fused::BiasRelu(v) => format!("bias relu {}", v.dtype),
            Fused::Sums { of_a, vector } => {
                format!("sums of {} {}", if *of_a { "a" } else { "b" }, vector.dtype)
            }
            Fused::BiasGeluTanhAux { bias, aux_ld, .. } => {
                format!("bias gelu {} ld {aux_ld}", bias.dtype)
            }
            Fused::GeluTanhGrad { aux_ld, .. } => format!("gelu's derivative ld {aux_ld}"),
        };
        format!(
            "{}x{}x{} times {}: a {}, b {}, d {}{}{}{}, then {finish}, aligned {:?}",
            p.m,
            p.n,
            p.k,
            p.batch,
            matrix(&p.a),
            matrix(&p.b),
            matrix(&p.d),
            if p.tf32 { ", tf32" } else { "" },
            if p.c.is_some() { ", added" } else { "" },
            if p.alpha.is_some() { ", scaled" } else { "" },
            self.addresses.iter().chain(&self.beside).map(|&a| alignment(a)).collect::<Vec<_>>()
        )
    }

    /// Puts the product into a stream.
    ///
    /// # Errors
    /// `R0707` if the library refuses.
    pub fn run(&self, stream: &Stream) -> Result<()> {
        let one = 1.0f32;
        let (alpha, beta) = match self.device_factors {
            Some((alpha, beta)) => (alpha as *const c_void, beta as *const c_void),
            None => ((&raw const one).cast(), (&raw const self.beta).cast()),
        };
        let [a, b, c, d] = self.addresses;
        // SAFETY: the descriptors are alive; the addresses are those of tensors or scratch memory
        // that the lowering has kept them inside of; the workspace is as large as was promised.
        let status = unsafe {
            self.api.cublasLtMatmul(
                self.handle,
                self.desc.raw,
                alpha,
                a as *const c_void,
                self.a.raw,
                b as *const c_void,
                self.b.raw,
                beta,
                c as *const c_void,
                self.d.raw,
                d as *mut c_void,
                self.d.raw,
                &raw const self.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE as usize,
                stream.raw,
            )
        };
        check(status, "a product")
    }
}

/// Largest power of two, up to 256, that an address is a multiple of.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

fn layout(
    api: &'static CublasLt,
    m: &Matrix,
    batch: u64,
) -> std::result::Result<Owned<lt::cublasLtMatrixLayout_t>, String> {
    let mut raw = std::ptr::null_mut();
    // SAFETY: the pointer is to a local.
    let status = unsafe {
        let dtype = data_type(m.dtype);
        api.cublasLtMatrixLayoutCreate(&raw mut raw, dtype, m.rows, m.columns, m.ld as i64)
    };
    said(status, "describing a matrix")?;
    let owned = Owned { raw, api, destroy: CublasLt::cublasLtMatrixLayoutDestroy };
    let set = |what: Layout, value: &[u8]| -> std::result::Result<(), String> {
        // SAFETY: the descriptor is alive and the value has the given length.
        let status = unsafe {
            let value_ptr = value.as_ptr().cast::<c_void>();
            api.cublasLtMatrixLayoutSetAttribute(raw, what as u32, value_ptr, value.len())
        };
        said(status, &format!("{what:?}"))
    };
    if batch > 1 {
        set(Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(batch as i32).to_ne_bytes())?;
        let stride = (m.batch_stride as i64).to_ne_bytes();
        set(Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride)?;
    }
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_are_powers_of_two_up_to_256() {
        assert_eq!([256u64, 64, 12, 2, 1, 1024, 0].map(alignment), [256, 64, 4, 2, 1, 256, 256]);
    }
}
