//! What only tests call: where the device stands, and putting its libraries into a folder.

use crate::device::device;
use crate::driver::exports;
use std::ffi::{CString, c_char, c_void};
use std::io;
use std::path::{Path, PathBuf};

exports! {
    /// Allocations of device memory that were not freed.
    fn softdevice_live_allocations() -> u64 {
        device().arena.live() as u64
    }
    /// Allocations of page-locked memory that were not freed.
    fn softdevice_live_pinned() -> u64 {
        device().pinned.len() as u64
    }
    /// Streams but the default one, events, graphs, instances of graphs, modules, and cuDNN's handles
    /// and descriptors that were not destroyed.
    fn softdevice_live_objects() -> u64 {
        let d = device();
        let driver = d.streams.len() - 1 + d.events.len() + d.graphs.len() + d.execs.len() + d.modules.len();
        driver as u64 + crate::dnn::LIVE.load(std::sync::atomic::Ordering::Relaxed)
    }
    /// Checks the bytes around every allocation; 0 if they are as they were.
    fn softdevice_check() -> u32 {
        device().check_guards().err().unwrap_or(0)
    }
    /// The most device memory that was given out at once, in bytes.
    fn softdevice_peak_bytes() -> u64 {
        device().arena.peak() as u64
    }
    /// Writes how many launches, products, replays of graphs and copies have run.
    fn softdevice_counts(to: *mut [u64; 4]) -> u32 {
        let c = device().counts;
        to.write_unaligned([c.launches, c.products, c.replays, c.copies]);
        0
    }
    /// As `PRECAST_SOFTWARE_DEVICE_REFUSES`, from now on; the words end with a zero.
    fn softdevice_refuse(words: *const c_char) -> u32 {
        crate::refusals::refuse(std::ffi::CStr::from_ptr(words).to_string_lossy().into_owned());
        0
    }
    /// Copies the last message, with a zero at its end.
    fn softdevice_message(to: *mut c_char, size: usize) -> u32 {
        if size == 0 {
            return 1;
        }
        let text = device().message.clone();
        let len = text.len().min(size - 1);
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), len);
        *to.add(len) = 0;
        0
    }
}

/// The names by which backends look for the libraries.
const NAMES: [&str; 4] = ["libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.13", "libcudnn.so.9"];

/// Has the test program that says so run on the software device: its libraries come first in every
/// search for NVIDIA's, from before `main` on ([`SoftwareDevice::search_first`]). Variables that are
/// given are set unless `PRECAST_CACHE` is there already; it is set to a folder in which kernels of
/// the software device are kept apart: `use_software_device!("PRECAST_CUDA_TUNE" = "0");`.
#[macro_export]
macro_rules! use_software_device {
    ($($name:literal = $value:expr),* $(,)?) => {
        const _: () = {
            #[used]
            #[unsafe(link_section = ".init_array")]
            static FIRST: extern "C" fn() = first;

            extern "C" fn first() {
                let kernels = concat!(env!("CARGO_TARGET_TMPDIR"), "/software-device");
                // SAFETY: nothing else runs before `main`.
                unsafe {
                    $crate::SoftwareDevice::set(kernels, &[$(($name, $value)),*]);
                }
                $crate::SoftwareDevice::search_first();
            }
        };
    };
}

/// The installed software device, asked by the tests that use it.
pub struct SoftwareDevice {
    handle: *mut c_void,
}

// SAFETY: a handle of the dynamic loader may be used from any thread.
unsafe impl Send for SoftwareDevice {}
// SAFETY: as above; the functions behind it lock the device.
unsafe impl Sync for SoftwareDevice {}

/// The built library: beside the running test, or one folder up.
fn library() -> io::Result<PathBuf> {
    let name = "libprecast_software_device.so";
    let test = std::env::current_exe()?;
    let folders = test.ancestors().skip(1).take(2);
    let mut tried = vec![];
    for folder in folders {
        for file in [folder.join(name), folder.join("deps").join(name)] {
            if file.is_file() {
                return Ok(file);
            }
            tried.push(file.display().to_string());
        }
    }
    let text = format!("the software device is not built; looked for {}", tried.join(", "));
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

impl SoftwareDevice {
    /// Puts links named as the driver, NVRTC, cuBLASLt and cuDNN are into `folder`, which is created.
    ///
    /// # Errors
    ///
    /// If the library was not built or the folder cannot be written to.
    pub fn install(folder: &Path) -> io::Result<()> {
        let library = library()?;
        std::fs::create_dir_all(folder)?;
        for name in NAMES {
            // By way of another name, since tests may install at once.
            let made = folder.join(format!("{name}.{}", std::process::id()));
            let _ = std::fs::remove_file(&made);
            std::os::unix::fs::symlink(&library, &made)?;
            std::fs::rename(&made, folder.join(name))?;
        }
        Ok(())
    }

    /// Sets `PRECAST_CACHE` to a folder and other variables, unless it is set.
    ///
    /// # Safety
    ///
    /// No other thread runs.
    pub unsafe fn set(kernels: &str, others: &[(&str, &str)]) {
        if std::env::var_os("PRECAST_CACHE").is_some() {
            return;
        }
        for (name, value) in [("PRECAST_CACHE", kernels)].iter().chain(others) {
            // SAFETY: the caller's promise.
            unsafe { std::env::set_var(name, value) };
        }
    }

    /// Makes this process find the software device by the ordinary library search: installs it
    /// beside the test and starts the process anew with the folder first in `LD_LIBRARY_PATH`,
    /// which the loader reads at the start alone. To be called before `main`, which
    /// [`crate::use_software_device`] does; in the new process it returns.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn search_first() {
        const MARK: &str = "PRECAST_SOFTWARE_DEVICE_FOLDER";
        if std::env::var_os(MARK).is_some() {
            return;
        }
        let test = std::env::current_exe().expect("a process has a file");
        let folder = test.parent().expect("a file lies in a folder").join("software-device");
        SoftwareDevice::install(&folder).expect("the software device is installed");
        let mut path = folder.clone().into_os_string();
        if let Some(old) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(old);
        }
        let kernels = folder.join("kernels");
        let error = std::os::unix::process::CommandExt::exec(
            std::process::Command::new(&test)
                .args(std::env::args_os().skip(1))
                .env("LD_LIBRARY_PATH", path)
                .env("PRECAST_SOFTWARE_DEVICE_CACHE", kernels)
                .env(MARK, folder),
        );
        panic!("cannot start {} again: {error}", test.display());
    }

    /// Opens the device in this process. All names lead to one file, so this is the one that
    /// backends use.
    ///
    /// # Errors
    ///
    /// If it was not built or cannot be loaded.
    pub fn open() -> io::Result<SoftwareDevice> {
        let path = library()?;
        let name = CString::new(path.as_os_str().as_encoded_bytes())?;
        // SAFETY: our own library; the name ends with a zero.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(io::Error::other(format!("cannot load {}", path.display())));
        }
        Ok(SoftwareDevice { handle })
    }

    fn symbol(&self, name: &std::ffi::CStr) -> *mut c_void {
        // SAFETY: the handle is open.
        let at = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!at.is_null(), "the software device has no {name:?}");
        at
    }

    fn number(&self, name: &std::ffi::CStr) -> u64 {
        // SAFETY: the functions asked by this take nothing and return a number of 64 bits.
        unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u64>(self.symbol(name))()
        }
    }

    /// Allocations of device memory that were not freed.
    pub fn live_allocations(&self) -> u64 {
        self.number(c"softdevice_live_allocations")
    }

    /// Allocations of page-locked memory that were not freed.
    pub fn live_pinned(&self) -> u64 {
        self.number(c"softdevice_live_pinned")
    }

    /// Streams, events, graphs, modules and descriptors that were not destroyed.
    pub fn live_objects(&self) -> u64 {
        self.number(c"softdevice_live_objects")
    }

    /// The most device memory that was given out at once, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.number(c"softdevice_peak_bytes")
    }

    /// Checks the bytes around every allocation.
    ///
    /// # Errors
    ///
    /// The number and the text of the failure.
    pub fn check(&self) -> Result<(), (u32, String)> {
        // SAFETY: the function takes nothing and returns a number of 32 bits.
        let code = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(
                self.symbol(c"softdevice_check"),
            )()
        };
        if code == 0 { Ok(()) } else { Err((code, self.message())) }
    }

    /// How many launches, products, replays of graphs and copies have run.
    pub fn counts(&self) -> [u64; 4] {
        let mut counts = [0; 4];
        let at = self.symbol(c"softdevice_counts");
        // SAFETY: the function writes four numbers.
        unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut [u64; 4]) -> u32>(at)(
                &mut counts,
            )
        };
        counts
    }

    /// Has libraries refuse to run what `PRECAST_SOFTWARE_DEVICE_REFUSES` would say.
    ///
    /// # Panics
    ///
    /// If the words hold a zero.
    pub fn refuse(&self, words: &str) {
        let words = CString::new(words).expect("no zero");
        let at = self.symbol(c"softdevice_refuse");
        // SAFETY: the function reads up to the zero.
        unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> u32>(at)(
                words.as_ptr(),
            )
        };
    }

    /// What the device last complained of.
    pub fn message(&self) -> String {
        let mut text = vec![0u8; 2048];
        let at = self.symbol(c"softdevice_message");
        // SAFETY: the function writes at most `size` bytes.
        unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_char, usize) -> u32>(at)(
                text.as_mut_ptr().cast(),
                text.len(),
            )
        };
        let end = text.iter().position(|&b| b == 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..end]).into_owned()
    }
}
