//! From text to loaded kernels.

use super::api::{Nvrtc, Status};
use super::cache::Cache;
use super::launch::Source;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A cubin and what compiling it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// Warnings, and what `--ptxas-options=-v` prints; empty for what came from the cache.
    pub log: String,
}

/// Compiles texts for one architecture.
pub struct Compiler<'a> {
    nvrtc: &'a Nvrtc,
    options: Vec<String>,
    version: (i32, i32),
    cache: Cache,
}

impl<'a> Compiler<'a> {
    /// For an architecture such as `sm_90a`, with these other options.
    ///
    /// # Errors
    /// `R0705` if NVRTC does not say its version.
    pub fn new(nvrtc: &'a Nvrtc, arch: &str, extra: &[&str], cache: Cache) -> Result<Compiler<'a>> {
        let version = version(nvrtc)?;
        let mut options = vec![format!("--gpu-architecture={arch}")];
        options.extend(extra.iter().map(ToString::to_string));
        Ok(Compiler { nvrtc, options, version, cache })
    }

    fn key(&self, source: &Source) -> Vec<u8> {
        let (major, minor) = self.version;
        let head = format!("nvrtc {major}.{minor}\n{}\n", self.options.join(" "));
        [head.as_bytes(), source.entry.as_bytes(), b"\n", source.text.as_bytes()].concat()
    }

    /// One text, from the cache where it is there.
    ///
    /// # Errors
    /// `R0705` with the compiler's log.
    pub fn compile(&self, source: &Source) -> Result<Compiled> {
        let key = self.key(source);
        if let Some(cubin) = self.cache.get("cubin", &key) {
            return Ok(Compiled { cubin, log: String::new() });
        }
        let compiled = self.fresh(source)?;
        self.cache.put("cubin", &key, &compiled.cubin);
        Ok(compiled)
    }

    /// Every text once, by its entry, on several threads.
    ///
    /// # Errors
    /// As [`Compiler::compile`], of the first text in order that fails.
    pub fn compile_all(
        &self,
        sources: &BTreeMap<String, Arc<Source>>,
    ) -> Result<BTreeMap<String, Compiled>> {
        let list: Vec<&Arc<Source>> = sources.values().collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(list.len());
        let next = AtomicUsize::new(0);
        let done: Mutex<BTreeMap<usize, Result<Compiled>>> = Mutex::default();
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(source) = list.get(at) else { return };
                let result = self.compile(source);
                done.lock().expect("no thread panics holding it").insert(at, result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let done = done.into_inner().expect("no thread panicked");
        done.into_iter().map(|(at, result)| Ok((list[at].entry.clone(), result?))).collect()
    }

    fn fresh(&self, source: &Source) -> Result<Compiled> {
        let program = Program::new(self.nvrtc, source)?;
        let options: Vec<CString> = self
            .options
            .iter()
            .map(|o| CString::new(o.as_str()).expect("options hold no zero"))
            .collect();
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: the program is alive; the options end with zeros and outlive the call.
        let status = unsafe {
            let count = pointers.len() as c_int;
            self.nvrtc.nvrtcCompileProgram(program.raw, count, pointers.as_ptr())
        };
        let log = program.log();
        if status != 0 {
            let what = words(self.nvrtc, status);
            let text = format!("the kernel `{}` does not compile ({what}):\n{log}", source.entry);
            return Err(Error::new("R0705", text)
                .help("this is a fault of Precast, or of an NVRTC too old for this device"));
        }
        Ok(Compiled { cubin: program.cubin()?, log })
    }
}

/// Version of the library.
///
/// # Errors
/// `R0705` if it does not say.
pub fn version(nvrtc: &Nvrtc) -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers are to locals.
    check(nvrtc, unsafe { nvrtc.nvrtcVersion(&raw mut major, &raw mut minor) }, "its version")?;
    Ok((major, minor))
}

fn words(nvrtc: &Nvrtc, status: Status) -> String {
    // SAFETY: takes any number and returns a static string.
    let text = unsafe { nvrtc.nvrtcGetErrorString(status) };
    if text.is_null() {
        return format!("status {status}");
    }
    // SAFETY: not null, ends with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn check(nvrtc: &Nvrtc, status: Status, what: &str) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    Err(Error::new("R0705", format!("NVRTC, {what}: {}", words(nvrtc, status))))
}

struct Program<'a> {
    nvrtc: &'a Nvrtc,
    raw: *mut c_void,
}

impl<'a> Program<'a> {
    fn new(nvrtc: &'a Nvrtc, source: &Source) -> Result<Program<'a>> {
        let name = CString::new(format!("{}.cu", source.entry)).expect("names hold no zero");
        let text = CString::new(source.text.as_str()).expect("texts hold no zero");
        let mut raw = std::ptr::null_mut();
        // SAFETY: the texts end with zeros; there are no headers.
        let status = unsafe {
            let none = std::ptr::null();
            nvrtc.nvrtcCreateProgram(&raw mut raw, text.as_ptr(), name.as_ptr(), 0, none, none)
        };
        check(nvrtc, status, "reading a text")?;
        Ok(Program { nvrtc, raw })
    }

    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the program is alive.
        if unsafe { self.nvrtc.nvrtcGetProgramLogSize(self.raw, &raw mut bytes) } != 0 {
            return String::new();
        }
        let mut text = vec![0u8; bytes];
        // SAFETY: the buffer has the size that was asked for.
        if unsafe { self.nvrtc.nvrtcGetProgramLog(self.raw, text.as_mut_ptr().cast()) } != 0 {
            return String::new();
        }
        String::from_utf8_lossy(&text).trim_end_matches(['\0', '\n']).to_string()
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program is alive and compiled.
        let status = unsafe { self.nvrtc.nvrtcGetCUBINSize(self.raw, &raw mut bytes) };
        check(self.nvrtc, status, "the size of a cubin")?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: the buffer has the size that was asked for.
        let status = unsafe { self.nvrtc.nvrtcGetCUBIN(self.raw, cubin.as_mut_ptr().cast()) };
        check(self.nvrtc, status, "a cubin")?;
        Ok(cubin)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe { self.nvrtc.nvrtcDestroyProgram(&raw mut self.raw) };
    }
}
