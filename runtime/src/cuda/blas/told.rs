//! Products as the library is told of them.

use super::{Call, Library};
use crate::cuda::api::{CublasLt, Status, blas};
use crate::cuda::launch::Place;
use crate::cuda::product::Product;
use crate::error::Result;
use cudarc::cublaslt::sys as lt;
use precast_plan::DType;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// What a value of cublasStatus_t means.
pub(super) fn word(status: Status) -> String {
    match status {
        1 => "not initialised".to_string(),
        3 => "out of memory".to_string(),
        7 => "an invalid value".to_string(),
        8 => "the architecture lacks it".to_string(),
        11 => "access to device memory failed".to_string(),
        13 => "the kernel failed".to_string(),
        14 => "an internal error".to_string(),
        15 => "not supported".to_string(),
        n => format!("status {n}"),
    }
}

pub(super) fn data_type(d: DType) -> u32 {
    use lt::cudaDataType_t as T;
    let t = match d {
        DType::F16 => T::CUDA_R_16F,
        DType::Bf16 => T::CUDA_R_16BF,
        DType::F32 => T::CUDA_R_32F,
        DType::F8e4m3 => T::CUDA_R_8F_E4M3,
        DType::F8e5m2 => T::CUDA_R_8F_E5M2,
        other => unreachable!("products of {other} are not lowered to cuBLASLt"),
    };
    t as u32
}

/// Tells the library of a product as a plan does, without a device. Descriptors need none, and the
/// library compares every attribute's number and size with its own; algorithms are not proposed. The
/// inner error is what the library declined.
///
/// # Errors
/// `R0701`, `R0702` where the library is missing or too old.
pub fn tell(p: &Product) -> Result<std::result::Result<(), String>> {
    static API: OnceLock<Result<CublasLt>> = OnceLock::new();
    let api = API.get_or_init(blas).as_ref().map_err(Clone::clone)?;
    let library = Library { api, handle: null_mut(), workspace: 0, constants: 0 };
    let anywhere = |_: Place| 256;
    let told = Call::new(library, p, &anywhere).and_then(|call| call.propose(1));
    Ok(match told {
        // What it says to a call without a handle, once all else is described.
        Err(why) if why.ends_with(&format!("choosing an algorithm: {}", word(1))) => Ok(()),
        Err(why) => Err(why),
        Ok(_) => Err("algorithms are proposed without a device".into()),
    })
}
