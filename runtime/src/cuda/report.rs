//! What of CUDA is on this machine, for people.

use super::driver::{DeviceInfo, devices};
use super::{api, dnn, nvrtc};
use crate::error::{Error, Result};
use std::path::PathBuf;

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub version: String,
    pub path: PathBuf,
}

/// Devices and libraries, each with what went wrong where it is missing.
#[derive(Clone, Debug)]
pub struct Report {
    pub devices: Result<Vec<DeviceInfo>>,
    /// Of every device: why plans cannot run on it with these libraries.
    pub unfit: Vec<Option<Error>>,
    /// Driver, NVRTC, cuBLASLt, cuDNN, by their names.
    pub libraries: Vec<(&'static str, Result<Found>)>,
}

impl Report {
    /// Whether plans can run on a GPU here: all but cuDNN is needed.
    pub fn usable(&self) -> bool {
        self.unfit.iter().any(Option::is_none)
            && self.libraries.iter().all(|l| l.1.is_ok() || l.0 == CUDNN)
    }
}

/// The oldest compute capability that kernels are made for: they take bf16 and asynchronous copies
/// for granted.
const OLDEST: (u32, u32) = (8, 0);

/// Whether plans run on a device, with libraries that its driver runs.
///
/// # Errors
/// `R0709` for a GPU older than kernels are made for.
pub fn fits(device: &DeviceInfo) -> Result<()> {
    let (major, minor) = device.facts.capability;
    if (major, minor) < OLDEST {
        let text = format!(
            "{} has compute capability {major}.{minor}, and kernels are made for {}.{} and later",
            device.name, OLDEST.0, OLDEST.1
        );
        return Err(Error::new("R0709", text)
            .at(format!("cuda:{}", device.ordinal))
            .help("that is Ampere (A100, RTX 30) or later; `--device cpu` needs no GPU"));
    }
    Ok(())
}

const CUDNN: &str = "cuDNN";

/// Looks for devices and libraries. Never fails.
pub fn report() -> Report {
    let driver = api::driver().and_then(|driver| {
        let version = format!("CUDA {}", api::driver_version()?);
        Ok(Found { version, path: driver.path.clone() })
    });
    let devices = devices();
    let unfit = devices.iter().flatten().map(|d| fits(d).err()).collect();
    let compiler = api::nvrtc().and_then(|nvrtc| {
        let (major, minor) = nvrtc::version(&nvrtc)?;
        Ok(Found { version: format!("{major}.{minor}"), path: nvrtc.path.clone() })
    });
    let blas = api::blas().map(|blas| {
        // SAFETY: takes no arguments.
        let v = unsafe { blas.cublasLtGetVersion() };
        let version = format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100);
        Found { version, path: blas.path.clone() }
    });
    let cudnn = dnn::cudnn().map(|cudnn| {
        let version = format!("{} for CUDA {}", dnn::spelled(cudnn.version()), cudnn.release());
        Found { version, path: cudnn.path.clone() }
    });
    Report {
        devices,
        unfit,
        libraries: vec![
            ("driver", driver),
            ("NVRTC", compiler),
            ("cuBLASLt", blas),
            (CUDNN, cudnn),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::launch::Facts;

    #[test]
    fn an_old_gpu_is_refused_by_its_capability() {
        let device = |capability| {
            let facts = Facts {
                capability,
                multiprocessors: 80,
                shared_per_block: 98_304,
                threads_per_multiprocessor: 2048,
            };
            DeviceInfo { ordinal: 1, name: "GPU".into(), facts, memory: 16 << 30 }
        };
        for (capability, fit) in
            [((7, 0), false), ((7, 5), false), ((8, 0), true), ((8, 9), true), ((10, 0), true)]
        {
            let found = fits(&device(capability));
            assert_eq!(found.is_ok(), fit, "{capability:?}");
            if let Err(e) = found {
                assert_eq!((e.code, e.place.as_deref()), ("R0709", Some("cuda:1")));
            }
        }
    }
}
