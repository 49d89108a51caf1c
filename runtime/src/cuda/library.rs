//! Finding NVIDIA's libraries.
//!
//! cudarc declares their functions and resolves a name at its first call, and panics where a
//! library or a name is missing; it also takes the first file the system knows by an unversioned
//! name, whichever release that is. So the libraries are found and opened here, and the functions
//! are looked up before anything is called ([`super::api`]); of cudarc, the declarations of types
//! are used. What is opened here by its path is also what a later search by name finds, since the
//! loader knows opened libraries by their names.

use crate::error::{Error, Result};
use std::env;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// Folders to search first, as a list like `PATH`.
pub const FOLDERS_VARIABLE: &str = "PRECAST_CUDA_PATH";

/// Where the toolkit's installer puts libraries, without telling the loader everywhere.
const TOOLKIT: &str = "/usr/local/cuda/lib64";

/// A library of NVIDIA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Driver,
    Nvrtc,
    CublasLt,
    Cudnn,
}

impl Kind {
    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Driver => "the CUDA driver",
            Kind::Nvrtc => "NVRTC",
            Kind::CublasLt => "cuBLASLt",
            Kind::Cudnn => "cuDNN",
        }
    }

    /// File names, the preferred release first; each with its major release of CUDA, where the name
    /// says it.
    const fn files(self) -> &'static [(&'static str, Option<i32>)] {
        match self {
            Kind::Driver => &[("libcuda.so.1", None), ("libcuda.so", None)],
            Kind::Nvrtc => &[("libnvrtc.so.13", Some(13)), ("libnvrtc.so.12", Some(12))],
            Kind::CublasLt => &[("libcublasLt.so.13", Some(13)), ("libcublasLt.so.12", Some(12))],
            Kind::Cudnn => &[("libcudnn.so.9", None)],
        }
    }

    /// pip's package of one that a driver can run; `None` of the driver's own.
    fn package(self, driver: Option<DriverVersion>) -> Option<&'static str> {
        let twelve = driver.is_some_and(|d| d.major() < 13);
        Some(match self {
            Kind::Driver => return None,
            Kind::Nvrtc if twelve => "nvidia-cuda-nvrtc-cu12",
            Kind::CublasLt if twelve => "nvidia-cublas-cu12",
            Kind::Cudnn if twelve => "nvidia-cudnn-cu12",
            Kind::Nvrtc => "nvidia-cuda-nvrtc",
            Kind::CublasLt => "nvidia-cublas",
            Kind::Cudnn => "nvidia-cudnn-cu13",
        })
    }

    /// What to do about a file that is there and cannot be opened.
    fn mend(self, driver: Option<DriverVersion>) -> String {
        match self.package(driver) {
            None => "install NVIDIA's driver again, whose file that is".into(),
            Some(package) => format!(
                "install it again, as by `pip install --force-reinstall {package}`, or name a folder with \
                 a whole one in {FOLDERS_VARIABLE}"
            ),
        }
    }

    /// How to get one that a driver can run.
    fn source(self, driver: Option<DriverVersion>) -> String {
        let twelve = driver.is_some_and(|d| d.major() < 13);
        let Some(package) = self.package(driver) else {
            return "it comes with NVIDIA's driver for the GPU".into();
        };
        match driver {
            Some(d) if d.major() < 12 => NEW_DRIVER.into(),
            Some(d) if twelve && self != Kind::Cudnn => format!(
                "`pip install {package}`, or the toolkit of CUDA {}, has it; or {NEW_DRIVER}",
                d.major()
            ),
            Some(_) if twelve => format!("`pip install {package}` has it; or {NEW_DRIVER}"),
            _ if self == Kind::Cudnn => format!("`pip install {package}` has it"),
            _ => format!("`pip install {package}`, or the CUDA toolkit, has it"),
        }
    }
}

const NEW_DRIVER: &str = "install a driver of release 580 or later, which is of CUDA 13";

/// The newest CUDA that a driver runs, as the driver says it: 12040 is 12.4.
///
/// Within one major release every driver runs what every minor release of a library makes, and a
/// later driver runs what libraries of earlier releases make; a driver of an earlier major release
/// runs neither cubins nor libraries of a later one (NVIDIA's CUDA Compatibility: minor version
/// compatibility; CUDA 12 from driver 525 on, CUDA 13 from driver 580 on). With NVIDIA's package for
/// forward compatibility it is that package's driver that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion(pub i32);

impl DriverVersion {
    pub const fn major(self) -> i32 {
        self.0 / 1000
    }

    /// Whether what is of a major release of CUDA runs.
    pub const fn runs(self, release: i32) -> bool {
        release <= self.major()
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 1000 / 10)
    }
}

/// A library of a later CUDA than the driver's, `of` such as `13`, found in `path`.
///
/// # Errors
/// `R0702`, with what to install.
pub fn too_new(kind: Kind, of: &str, path: &Path, driver: DriverVersion, looked: &str) -> Error {
    let text = format!(
        "{} in {} is of CUDA {of}, and the driver runs CUDA {driver} and earlier",
        kind.name(),
        path.display()
    );
    Error::new("R0702", text).help(format!("{looked}; {}", kind.source(Some(driver))))
}

/// Where libraries are looked for, in order: `first`, what the system's loader searches, `last`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// From the environment variable.
    pub first: Vec<PathBuf>,
    /// Whether the loader's own search is asked.
    pub system: bool,
    /// The toolkit's folder and pip's `nvidia` packages.
    pub last: Vec<PathBuf>,
    /// Whether `python3` was asked for its packages and did not answer in time.
    pub unanswered: bool,
}

impl Places {
    /// Those of this machine. Runs `python3` once to ask where its packages are.
    pub fn here() -> Places {
        let first = env::var_os(FOLDERS_VARIABLE)
            .map(|list| env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect());
        let mut last = vec![PathBuf::from(TOOLKIT)];
        let (sites, unanswered) = python_folders();
        for site in sites {
            last.extend(nvidia_packages(&site));
        }
        last.dedup();
        Places { first: first.unwrap_or_default(), system: true, last, unanswered }
    }

    /// What to open, in order: absolute paths of files that exist, and bare names for the loader.
    /// Files are those of releases that are `wanted`; of no release where the name says none.
    fn candidates(&self, kind: Kind, wanted: &dyn Fn(Option<i32>) -> bool) -> Vec<PathBuf> {
        let inside = |folders: &[PathBuf], file: &str| -> Vec<PathBuf> {
            folders.iter().map(|f| f.join(file)).filter(|p| p.is_file()).collect()
        };
        let files = || kind.files().iter().filter(|f| wanted(f.1)).map(|f| f.0);
        // The variable's folders win over everything, whichever release that runs they hold.
        let mut list: Vec<PathBuf> = files().flat_map(|file| inside(&self.first, file)).collect();
        for file in files() {
            if self.system {
                list.push(PathBuf::from(file));
            }
            list.extend(inside(&self.last, file));
        }
        list
    }

    /// For an error: everywhere a library was looked for.
    fn describe(&self) -> String {
        let list = |folders: &[PathBuf]| -> String {
            folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
        };
        let mut text = String::new();
        if self.first.is_empty() {
            let _ = write!(text, "{FOLDERS_VARIABLE} (not set)");
        } else {
            let _ = write!(text, "{FOLDERS_VARIABLE} ({})", list(&self.first));
        }
        if self.system {
            text.push_str(", the system's library path");
        }
        if !self.last.is_empty() {
            let _ = write!(text, ", {}", list(&self.last));
        }
        if !self.last.iter().any(|f| f.components().any(|c| c.as_os_str() == "nvidia")) {
            let why = if self.unanswered {
                format!("python3 did not say in {} s where they are", PYTHON_LIMIT.as_secs())
            } else {
                "python3 has none".into()
            };
            let _ = write!(text, ", pip's nvidia packages ({why})");
        }
        text
    }
}

/// The `lib` folders of pip's `nvidia` packages in a `site-packages` folder. The toolkit's own come
/// before those of single libraries; `cu13` before `cu12`.
pub fn nvidia_packages(site: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(site.join("nvidia")) else { return vec![] };
    let mut names: Vec<OsString> = entries.flatten().map(|e| e.file_name()).collect();
    let toolkit = |n: &OsString| {
        n.to_str()
            .and_then(|n| n.strip_prefix("cu"))
            .is_some_and(|v| !v.is_empty() && v.bytes().all(|c| c.is_ascii_digit()))
    };
    names.sort_by(|a, b| (toolkit(b), b).cmp(&(toolkit(a), a)));
    let folder = |n: OsString| site.join("nvidia").join(n).join("lib");
    names.into_iter().map(folder).filter(|f| f.is_dir()).collect()
}

/// Longest that `python3` may take to print where its packages are; it takes some 20 ms.
const PYTHON_LIMIT: Duration = Duration::from_secs(5);

/// What a command prints; `None` where it cannot be started, `Some(None)` where it has not ended its
/// output after `limit`. It is killed then.
fn output_within(command: &mut Command, limit: Duration) -> Option<Option<String>> {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = quiet.spawn().ok()?;
    let mut pipe = child.stdout.take().expect("standard output is piped");
    let (sender, output) = mpsc::channel();
    // The thread outlives the deadline where something else holds the pipe open.
    std::thread::spawn(move || {
        let mut bytes = vec![];
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    let bytes = output.recv_timeout(limit).ok();
    // Having closed its output it has nothing left to say.
    let _ = child.kill();
    let _ = child.wait();
    Some(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
}

/// `site-packages` folders: of the active environment, then of `python3` on the path; and whether
/// `python3` did not answer.
fn python_folders() -> (Vec<PathBuf>, bool) {
    let mut found = vec![];
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(prefix) = env::var_os(variable) {
            found.extend(site_packages(Path::new(&prefix)));
        }
    }
    // Distributions differ in where packages are; the interpreter knows.
    let script = "import sys; print('\\n'.join(sys.path))";
    let answer = output_within(Command::new("python3").args(["-c", script]), PYTHON_LIMIT);
    let unanswered = answer == Some(None);
    if unanswered {
        tracing::warn!("python3 did not say in {PYTHON_LIMIT:?} where its packages are");
    }
    let text = answer.flatten().unwrap_or_default();
    found.extend(text.lines().map(PathBuf::from).filter(|p| p.is_absolute()));
    let mut seen: Vec<PathBuf> = vec![];
    found.retain(|f| {
        !seen.contains(f) && {
            seen.push(f.clone());
            true
        }
    });
    (found, unanswered)
}

/// `PREFIX/lib/python3.*/site-packages`, in order of the names.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(prefix.join("lib")) else { return vec![] };
    let mut list: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with("python3")))
        .map(|e| e.path().join("site-packages"))
        .filter(|p| p.is_dir())
        .collect();
    list.sort();
    list
}

/// An opened library. It stays open until the process ends.
pub struct Library {
    pub kind: Kind,
    /// The file, where the system says so.
    pub path: PathBuf,
    handle: &'static libloading::Library,
}

impl Library {
    /// Opens the first candidate that can be opened and that the driver runs; without `driver`, as
    /// where there is none, of whichever release.
    ///
    /// # Errors
    /// `R0701`, naming the library and where it was looked for; `R0702` where the driver runs none of
    /// those that are there.
    pub fn open(kind: Kind, places: &Places, driver: Option<DriverVersion>) -> Result<Library> {
        let runs = |of: Option<i32>| match (driver, of) {
            (Some(driver), Some(of)) => driver.runs(of),
            _ => true,
        };
        let newer = || places.candidates(kind, &|of| !runs(of));
        let mut refused = vec![];
        for candidate in places.candidates(kind, &runs) {
            if kind == Kind::Nvrtc && candidate.is_absolute() {
                // NVRTC opens its builtins by a bare name, which the loader knows from here on.
                builtins(&candidate);
            }
            // SAFETY: NVIDIA's libraries run no code on loading that could disturb this process.
            match unsafe { libloading::Library::new(&candidate) } {
                Ok(library) => {
                    // Functions are kept as plain pointers, so the library is never closed.
                    let handle: &'static libloading::Library = Box::leak(Box::new(library));
                    let path = if candidate.is_absolute() {
                        candidate
                    } else {
                        mapped(&candidate).unwrap_or(candidate)
                    };
                    tracing::info!("{} is {}", kind.name(), path.display());
                    for other in newer().iter().filter(|p| p.is_absolute()) {
                        let file = other.display();
                        tracing::info!("{file} is of a later CUDA than the driver's");
                    }
                    return Ok(Library { kind, path, handle });
                }
                Err(e) if candidate.is_absolute() => {
                    let (path, text) = (candidate.display().to_string(), reason(&e));
                    // Words on a library that this one needs do not name this one.
                    let named = text.contains(&path);
                    refused.push(if named { text } else { format!("{path}: {text}") });
                }
                // The loader's own search: that a file is nowhere is said below.
                Err(e) => {
                    let text = reason(&e);
                    let nowhere = format!(
                        "{}: cannot open shared object file: No such file",
                        candidate.display()
                    );
                    if !text.starts_with(&nowhere) {
                        refused.push(text);
                    }
                }
            }
        }
        let looked = format!("looked in {}", places.describe());
        if let Some(driver) = driver
            && refused.is_empty()
            && let Some((of, path)) = newer().iter().find_map(|p| found(kind, p))
        {
            return Err(too_new(kind, &of.to_string(), &path, driver, &looked));
        }
        let mut files = kind.files().iter();
        let file = files.find(|f| runs(f.1)).unwrap_or(&kind.files()[0]).0;
        let (text, what) = match refused.is_empty() {
            true => (format!("{} was not found ({file})", kind.name()), kind.source(driver)),
            false => {
                let text = format!("{} cannot be opened: {}", kind.name(), refused.join("; "));
                (text, kind.mend(driver))
            }
        };
        Err(Error::new("R0701", text).help(format!("{looked}; {what}")))
    }

    /// The address of a function.
    ///
    /// # Errors
    /// `R0702` where the library is too old (or too new) to have it.
    ///
    /// # Safety
    /// `T` is the type of a pointer to that function.
    pub unsafe fn function<T: Copy>(&self, name: &str) -> Result<T> {
        // SAFETY: the caller's contract; the library is never closed.
        let symbol = unsafe { self.handle.get::<T>(name.as_bytes()) };
        symbol.map(|s| *s).map_err(|_| {
            let text = format!("{} has no function `{name}`", self.kind.name());
            Error::new("R0702", text).at(self.path.display()).help(
                "this version is written for CUDA 12 and 13: a driver of release 525 or later",
            )
        })
    }

    /// Whether the library has a function.
    pub fn has(&self, name: &str) -> bool {
        // SAFETY: the address is not used.
        unsafe { self.handle.get::<*const ()>(name.as_bytes()) }.is_ok()
    }
}

/// The loader's own words, which the error keeps behind it.
fn reason(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string)
}

/// Opens the builtins beside an NVRTC; without them NVRTC reports what is missing itself.
fn builtins(nvrtc: &Path) {
    let Some(folder) = nvrtc.parent() else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.starts_with("libnvrtc-builtins.so")
        })
        .collect();
    files.sort();
    for file in files {
        // SAFETY: a library of data.
        if let Ok(library) = unsafe { libloading::Library::new(&file) } {
            std::mem::forget(library);
        }
    }
}

/// The release and the file of a library that can be opened, for telling people of it.
fn found(kind: Kind, candidate: &Path) -> Option<(i32, PathBuf)> {
    // SAFETY: as in `Library::open`; nothing of it is called and it is closed again.
    let library = unsafe { libloading::Library::new(candidate) }.ok()?;
    let path = match candidate.is_absolute() {
        true => candidate.into(),
        false => mapped(candidate).unwrap_or_else(|| candidate.into()),
    };
    drop(library);
    let file = candidate.file_name()?.to_str()?;
    let of = kind.files().iter().find(|f| f.0 == file)?.1?;
    Some((of, path))
}

/// The file behind a library that was opened by name, from the list of mapped files.
fn mapped(name: &Path) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let stem = name.to_str()?.split(".so").next()?.to_string() + ".so";
    maps.lines()
        .filter_map(|l| l.find('/').map(|at| PathBuf::from(&l[at..])))
        .find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&stem)))
}

/// The folders of this machine, found once.
pub fn places() -> &'static Places {
    static PLACES: OnceLock<Places> = OnceLock::new();
    PLACES.get_or_init(Places::here)
}

#[cfg(test)]
mod tests;
