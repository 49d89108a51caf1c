//! What of CUDA is on this machine, for people.

use super::driver::{DeviceInfo, devices};
use super::library::{Kind, Library, places};
use super::{api, nvrtc};
use crate::error::Result;
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
    /// Driver, NVRTC, cuBLASLt, cuDNN, by their names.
    pub libraries: Vec<(&'static str, Result<Found>)>,
}

impl Report {
    /// Whether plans can run on a GPU here: all but cuDNN is needed.
    pub fn usable(&self) -> bool {
        self.devices.is_ok() && self.libraries.iter().all(|l| l.1.is_ok() || l.0 == CUDNN)
    }
}

const CUDNN: &str = "cuDNN";

/// Looks for devices and libraries. Never fails.
pub fn report() -> Report {
    let driver = api::driver().and_then(|driver| {
        let mut version = 0;
        // SAFETY: the pointer is to a local; needs no initialisation.
        let status = unsafe { driver.cuDriverGetVersion(&raw mut version) };
        driver.check(status, "reading the driver's version")?;
        // 13000 is 13.0.
        let version = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
        Ok(Found { version, path: driver.path.clone() })
    });
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
    let cudnn = Library::open(Kind::Cudnn, places()).and_then(|library| {
        // SAFETY: the type is that of NVIDIA's header.
        let version =
            unsafe { library.function::<unsafe extern "C" fn() -> usize>("cudnnGetVersion")? };
        // SAFETY: takes no arguments.
        let v = unsafe { version() };
        let version = format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100);
        Ok(Found { version, path: library.path })
    });
    Report {
        devices: devices(),
        libraries: vec![
            ("driver", driver),
            ("NVRTC", compiler),
            ("cuBLASLt", blas),
            (CUDNN, cudnn),
        ],
    }
}
