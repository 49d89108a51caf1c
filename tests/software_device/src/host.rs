//! Kernel text compiled for the host and launched there.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of headers by which kernel text compiles for the host.
pub const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// What the launcher of a kernel is told; `softdev_run.h` has the same layout.
#[repr(C)]
struct Launch {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    reserved: u32,
    seed: u64,
    args: *mut *mut c_void,
    message: *mut c_char,
    message_size: u64,
}

/// Why a launch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchError {
    /// 1 bad launch, 2 barrier misuse, 700 illegal address, 719 trap.
    pub code: i32,
    pub message: String,
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (error {})", self.message, self.code)
    }
}

impl std::error::Error for LaunchError {}

/// A compiled translation unit. It stays loaded until the process ends.
#[derive(Debug)]
pub struct HostModule {
    handle: *mut c_void,
    path: PathBuf,
}

// SAFETY: a handle of dlopen may be used from any thread, and launches of one library exclude
// each other by a lock of its own.
unsafe impl Send for HostModule {}
// SAFETY: as above.
unsafe impl Sync for HostModule {}

/// One launched kernel.
#[derive(Clone, Copy, Debug)]
pub struct HostKernel {
    launch: unsafe extern "C" fn(*mut Launch) -> c_int,
    parameters: unsafe extern "C" fn(*mut u32, c_int) -> c_int,
    static_shared: unsafe extern "C" fn() -> u32,
    max_threads: u32,
}

/// A kernel of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// The first argument of its `__launch_bounds__`, as it stands.
    pub bounds: Option<String>,
}

/// The `extern "C" __global__` functions of `text`, in order.
pub fn entries(text: &str) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("__global__") {
        rest = &rest[at + "__global__".len()..];
        let mut head = rest.trim_start();
        let mut bounds = None;
        // `void`, attributes with or without parentheses, then the name before the parameters.
        let name = loop {
            let end =
                head.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(head.len());
            let (word, after) = head.split_at(end);
            let after = after.trim_start();
            if word.is_empty() {
                break None;
            }
            if word == "__launch_bounds__" || word == "__cluster_dims__" {
                let Some(close) = after.find(')') else { break None };
                if word == "__launch_bounds__" {
                    let first = after[1..close].split(',').next().unwrap_or_default();
                    bounds = Some(first.trim().to_string());
                }
                head = after[close + 1..].trim_start();
            } else if after.starts_with('(') {
                break Some(word);
            } else {
                head = after;
            }
        };
        if let Some(name) = name
            && !found.iter().any(|e| e.name == name)
        {
            found.push(Entry { name: name.to_string(), bounds });
        }
    }
    found
}

/// Compiles `text` to a shared library in `cache` and returns its path; a library that is there
/// already is not made again. `options` are more arguments of the compiler.
///
/// # Errors
///
/// What the compiler says, or why it could not be run.
pub fn build(text: &str, options: &[&str], cache: &Path) -> Result<PathBuf, String> {
    let mut unit = String::with_capacity(text.len() + 200);
    unit.push_str("#line 1 \"kernel\"\n");
    unit.push_str(text);
    unit.push('\n');
    for Entry { name, bounds } in entries(text) {
        let bounds = bounds.as_deref().unwrap_or("1024");
        unit.push_str(&format!(
            "PRECAST_HOST_ENTRY({name})\nPRECAST_HOST_BOUNDS({name}, {bounds})\n"
        ));
    }
    let compiler = compiler()?;
    let mut arguments: Vec<String> = FLAGS.iter().map(|f| f.to_string()).collect();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
    {
        arguments.extend(["-mavx2", "-mf16c", "-mfma"].map(String::from));
    }
    arguments.extend(options.iter().map(|o| o.to_string()));
    let headers = headers()?;
    let key = hash(&[&headers, &unit, &compiler, &arguments.join(" ")]);
    let path = cache.join(format!("kernel-{key:016x}.so"));
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(cache)
        .map_err(|e| format!("cannot create {}: {e}", cache.display()))?;
    let stem = format!("kernel-{key:016x}-{}", unique());
    let source = cache.join(format!("{stem}.cpp"));
    let made = cache.join(format!("{stem}.tmp"));
    std::fs::write(&source, &unit)
        .map_err(|e| format!("cannot write {}: {e}", source.display()))?;
    let header = precompiled(&compiler, &arguments, &headers, cache);
    let output = Command::new(&compiler)
        .args(&arguments)
        .arg("-include")
        .arg(header)
        .args(["-I", INCLUDE])
        .arg(&source)
        .arg("-o")
        .arg(&made)
        .arg("-Wl,-z,nodelete")
        .output()
        .map_err(|e| format!("cannot run {compiler}: {e}"))?;
    let _ = std::fs::remove_file(&source);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    std::fs::rename(&made, &path).map_err(|e| format!("cannot rename {}: {e}", made.display()))?;
    Ok(path)
}

/// `CXX`, else the first C++ compiler that there is.
fn compiler() -> Result<String, String> {
    static FOUND: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let works = |name: &String| {
        Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())
    };
    let search = || {
        let given = std::env::var("CXX").ok();
        given.or_else(|| ["g++", "c++", "clang++"].map(String::from).into_iter().find(works))
    };
    let none = "kernel text needs a C++ compiler: set CXX, or install g++ or clang++";
    FOUND.get_or_init(search).clone().ok_or_else(|| none.to_string())
}

/// A copy of the header with its precompiled form beside it, made once for these arguments, which
/// more than halves the time of a compilation. The header itself where that fails.
fn precompiled(compiler: &str, arguments: &[String], headers: &str, cache: &Path) -> PathBuf {
    const HEADER: &str = "precast_software_device.h";
    let plain = PathBuf::from(HEADER);
    // clang++ takes a precompiled header by another option.
    if !compiler.contains("g++") || compiler.contains("clang") {
        return plain;
    }
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|p| p.into_inner());
    let key = hash(&[headers, compiler, &arguments.join(" ")]);
    let folder = cache.join(format!("header-{key:016x}"));
    let header = folder.join(HEADER);
    if header.exists() {
        return header;
    }
    let making = cache.join(format!("header-{key:016x}-{}", unique()));
    let made = std::fs::create_dir_all(&making).is_ok()
        && std::fs::copy(Path::new(INCLUDE).join(HEADER), making.join(HEADER)).is_ok()
        && Command::new(compiler)
            .args(arguments)
            .args(["-x", "c++-header", "-I", INCLUDE])
            .arg(making.join(HEADER))
            .arg("-o")
            .arg(making.join(format!("{HEADER}.gch")))
            .output()
            .is_ok_and(|o| o.status.success());
    // Another process may have been first.
    if made && (std::fs::rename(&making, &folder).is_ok() || header.exists()) {
        return header;
    }
    let _ = std::fs::remove_dir_all(&making);
    plain
}

/// -O1 compiles in half the time of -O2; alignment and bounds end in a trap that the launcher
/// reports.
const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
    "-fsanitize=alignment,bounds",
    "-fsanitize-undefined-trap-on-error",
];

fn headers() -> Result<String, String> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(INCLUDE)
        .and_then(|d| d.map(|e| e.map(|e| e.path())).collect())
        .map_err(|e| format!("cannot read {INCLUDE}: {e}"))?;
    names.sort();
    let mut all = String::new();
    for name in names {
        all += &std::fs::read_to_string(&name)
            .map_err(|e| format!("cannot read {}: {e}", name.display()))?;
    }
    Ok(all)
}

/// FNV-1a over the parts and their lengths.
fn hash(parts: &[&str]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.bytes().chain((part.len() as u64).to_le_bytes()) {
            h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    h
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where compiled text is kept: `PRECAST_SOFTWARE_DEVICE_CACHE`, else a folder of the system's
/// temporary folder.
pub fn cache_folder() -> PathBuf {
    match std::env::var_os("PRECAST_SOFTWARE_DEVICE_CACHE") {
        Some(path) => path.into(),
        None => std::env::temp_dir().join("precast-software-device"),
    }
}

impl HostModule {
    /// Compiles the text of one or more kernels, prelude included.
    ///
    /// # Errors
    ///
    /// The messages of the compiler; their line numbers are those of `text`.
    pub fn compile(text: &str, options: &[&str]) -> Result<HostModule, String> {
        HostModule::load(&build(text, options, &cache_folder())?)
    }

    /// Loads a library that [`build`] made.
    ///
    /// # Errors
    ///
    /// What the dynamic loader says.
    pub fn load(path: &Path) -> Result<HostModule, String> {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: the name ends in NUL; the library is one of ours, without constructors that
        // have requirements.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives a string or null.
            let said = unsafe { libc::dlerror() };
            let said = if said.is_null() {
                "dlopen failed".to_string()
            } else {
                // SAFETY: not null, NUL-terminated, copied at once.
                unsafe { CStr::from_ptr(said) }.to_string_lossy().into_owned()
            };
            return Err(said);
        }
        Ok(HostModule { handle, path: path.to_path_buf() })
    }

    /// The file of the library.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open and the name ends in NUL.
        let at = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!at.is_null()).then_some(at)
    }

    /// The kernel `entry`, if the text has one of that name.
    pub fn kernel(&self, entry: &str) -> Option<HostKernel> {
        let launch = self.symbol(&format!("launch_{entry}"))?;
        let parameters = self.symbol(&format!("parameters_{entry}"))?;
        let static_shared = self.symbol(&format!("static_shared_{entry}"))?;
        let max_threads = self.symbol(&format!("max_threads_{entry}")).map_or(1024, |f| {
            // SAFETY: `PRECAST_HOST_BOUNDS` defines it with this signature.
            unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(f)() }
        });
        // SAFETY: `PRECAST_HOST_ENTRY` defines the three with these signatures.
        unsafe {
            Some(HostKernel {
                launch: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut Launch) -> c_int,
                >(launch),
                parameters: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut u32, c_int) -> c_int,
                >(parameters),
                static_shared: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(
                    static_shared,
                ),
                max_threads,
            })
        }
    }

    /// Launches `entry` and waits for it; `args[i]` points at argument i.
    ///
    /// # Errors
    ///
    /// What the kernel did wrong; code 1 where there is no such kernel.
    ///
    /// # Safety
    ///
    /// The arguments have the types of the parameters, and what they point to is what the kernel
    /// expects.
    pub unsafe fn launch(
        &self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        seed: u64,
        args: &mut [*mut c_void],
    ) -> Result<(), LaunchError> {
        let kernel = self
            .kernel(entry)
            .ok_or_else(|| LaunchError { code: 1, message: format!("no kernel `{entry}`") })?;
        // SAFETY: handed on to the caller.
        unsafe { kernel.launch(grid, block, shared, seed, args) }
    }
}

impl HostKernel {
    /// Bytes of every parameter.
    pub fn parameter_sizes(&self) -> Vec<u32> {
        // SAFETY: with no room the function writes nothing.
        let count = unsafe { (self.parameters)(std::ptr::null_mut(), 0) };
        let mut sizes = vec![0; count as usize];
        // SAFETY: there is room for `count` sizes.
        unsafe { (self.parameters)(sizes.as_mut_ptr(), count) };
        sizes
    }

    /// The most threads of a block, by its `__launch_bounds__`.
    pub fn max_threads(&self) -> u32 {
        self.max_threads
    }

    /// Bytes of static shared memory.
    pub fn static_shared(&self) -> u32 {
        // SAFETY: no requirements.
        unsafe { (self.static_shared)() }
    }

    /// Launches the kernel and waits for it.
    ///
    /// # Errors
    ///
    /// What the kernel did wrong.
    ///
    /// # Safety
    ///
    /// As for [`HostModule::launch`].
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        seed: u64,
        args: &mut [*mut c_void],
    ) -> Result<(), LaunchError> {
        let count = self.parameter_sizes().len();
        if count != args.len() {
            let message = format!("{} arguments for {count} parameters", args.len());
            return Err(LaunchError { code: 1, message });
        }
        let mut message = vec![0u8; 1024];
        let mut launch = Launch {
            grid,
            block,
            shared,
            reserved: 0,
            seed,
            args: args.as_mut_ptr(),
            message: message.as_mut_ptr().cast(),
            message_size: message.len() as u64,
        };
        // SAFETY: the layout is that of the launcher; the rest is the caller's promise.
        let code = unsafe { (self.launch)(&mut launch) };
        if code == 0 {
            return Ok(());
        }
        let end = message.iter().position(|&b| b == 0).unwrap_or(message.len());
        Err(LaunchError { code, message: String::from_utf8_lossy(&message[..end]).into_owned() })
    }
}
