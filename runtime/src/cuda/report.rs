//! What of CUDA is on this machine, for people.

use super::driver::{DeviceInfo, devices};
use super::library::{Kind, Library, places};
use super::{api, nvrtc};
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

/// Whether plans run on a device with libraries of these releases of CUDA, major and minor; `None`
/// where a library is missing.
///
/// # Errors
/// `R0709` for a GPU older than kernels are made for; `R0702` for a driver that cannot load what a
/// library of a later major release makes. (Within one, any driver loads what any release makes:
/// NVIDIA's minor version compatibility.)
pub fn fits(device: &DeviceInfo, nvrtc: Option<Release>, blas: Option<Release>) -> Result<()> {
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
    let driver = (device.driver_version / 1000, device.driver_version % 1000 / 10);
    for (name, release) in [("NVRTC", nvrtc), ("cuBLASLt", blas)] {
        if let Some(release) = release.filter(|r| r.0 > driver.0) {
            let text = format!(
                "{name} is of release {}.{}, and the driver of CUDA {}.{}",
                release.0, release.1, driver.0, driver.1
            );
            return Err(Error::new("R0702", text).help(
                "install a driver of release 580 or later, or libraries of the driver's CUDA release",
            ));
        }
    }
    Ok(())
}

/// Major and minor.
pub type Release = (i32, i32);

/// That of a cuBLASLt, whose major release is CUDA's.
pub fn blas_release(blas: &api::CublasLt) -> Release {
    // SAFETY: takes no arguments.
    let version = unsafe { blas.cublasLtGetVersion() } as i32;
    (version / 10_000, version / 100 % 100)
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
    let (nvrtc, blas) = (api::nvrtc(), api::blas());
    let devices = devices();
    let releases = (
        nvrtc.as_ref().ok().and_then(|n| nvrtc::version(n).ok()),
        blas.as_ref().ok().map(blas_release),
    );
    let unfit = devices.iter().flatten().map(|d| fits(d, releases.0, releases.1).err()).collect();
    let compiler = nvrtc.and_then(|nvrtc| {
        let (major, minor) = nvrtc::version(&nvrtc)?;
        Ok(Found { version: format!("{major}.{minor}"), path: nvrtc.path.clone() })
    });
    let blas = blas.map(|blas| {
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

    fn device(capability: (u32, u32), driver_version: i32) -> DeviceInfo {
        let facts = Facts {
            capability,
            multiprocessors: 80,
            shared_per_block: 98_304,
            threads_per_multiprocessor: 2048,
        };
        DeviceInfo { ordinal: 1, name: "GPU".into(), facts, memory: 16 << 30, driver_version }
    }

    #[test]
    fn an_old_gpu_is_refused_by_its_capability() {
        for (capability, fit) in
            [((7, 0), false), ((7, 5), false), ((8, 0), true), ((8, 9), true), ((10, 0), true)]
        {
            let found = fits(&device(capability, 13_000), Some((13, 0)), Some((13, 0)));
            assert_eq!(found.is_ok(), fit, "{capability:?}");
            if let Err(e) = found {
                assert_eq!((e.code, e.place.as_deref()), ("R0709", Some("cuda:1")));
            }
        }
    }

    #[test]
    fn a_library_of_a_later_major_release_than_the_driver_is_refused() {
        let of = |driver, nvrtc, blas| fits(&device((9, 0), driver), nvrtc, blas);
        let e = of(12_040, Some((13, 0)), Some((12, 0))).unwrap_err();
        assert_eq!(e.code, "R0702");
        assert_eq!(e.message, "NVRTC is of release 13.0, and the driver of CUDA 12.4");
        let e = of(12_080, Some((12, 8)), Some((13, 0))).unwrap_err();
        assert!(e.message.starts_with("cuBLASLt"), "{e}");
        assert_eq!(of(13_000, Some((13, 2)), Some((13, 0))), Ok(()), "a later minor release");
        assert_eq!(of(13_000, Some((12, 8)), None), Ok(()), "an earlier one");
    }
}
