//! The run-time compiler: text becomes a library of the host, packed into what passes for a cubin.

use crate::driver::exports;
use crate::host::{HostModule, build, cache_folder};
use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// How every image begins; eight bytes of length and the library follow.
pub const MAGIC: &[u8] = b"PRECAST-SOFTWARE-DEVICE\0";

const INVALID_INPUT: u32 = 3;
const INVALID_PROGRAM: u32 = 4;
const INVALID_OPTION: u32 = 5;
const COMPILATION: u32 = 6;

/// A text and what became of it.
pub struct Program {
    text: String,
    log: CString,
    image: Vec<u8>,
}

fn pack(library: &[u8]) -> Vec<u8> {
    [MAGIC, &(library.len() as u64).to_le_bytes(), library].concat()
}

/// Loads the library of an image.
///
/// # Safety
///
/// The image begins with [`MAGIC`] and is as long as it says.
pub unsafe fn unpack(image: *const u8) -> Result<HostModule, String> {
    // SAFETY: the caller's promise.
    let bytes = unsafe {
        let at = image.add(MAGIC.len());
        let len = u64::from_le_bytes(at.cast::<[u8; 8]>().read_unaligned());
        std::slice::from_raw_parts(at.add(8), len as usize)
    };
    let key = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let folder = cache_folder();
    let path = folder.join(format!("module-{key:016x}.so"));
    if std::fs::metadata(&path).map_or(0, |m| m.len()) != bytes.len() as u64 {
        std::fs::create_dir_all(&folder)
            .map_err(|e| format!("cannot create {}: {e}", folder.display()))?;
        let name = format!(
            "module-{key:016x}-{}-{:?}.tmp",
            std::process::id(),
            std::thread::current().id()
        );
        let made = folder.join(name);
        std::fs::write(&made, bytes)
            .map_err(|e| format!("cannot write {}: {e}", made.display()))?;
        std::fs::rename(&made, &path)
            .map_err(|e| format!("cannot rename {}: {e}", made.display()))?;
    }
    HostModule::load(&path)
}

/// The compiler's definitions are handed on; what chooses an architecture or asks for a report is
/// accepted and means nothing here.
fn translate(option: &str) -> Option<Vec<String>> {
    if let Some(rest) = option.strip_prefix("-D").or_else(|| option.strip_prefix("--define-macro="))
    {
        return Some(vec![format!("-D{rest}")]);
    }
    let known = [
        "--gpu-architecture=",
        "-arch=",
        "--std=",
        "-std=",
        "--ptxas-options=",
        "--fmad=",
        "--use_fast_math",
        "-use_fast_math",
        "--include-path=",
        "-I",
        "--extra-device-vectorization",
        "-default-device",
        "--device-int128",
        "--generate-line-info",
        "-lineinfo",
        "--maxrregcount=",
        "--ftz=",
        "--prec-div=",
        "--prec-sqrt=",
        "--diag-suppress=",
        "--restrict",
        "--minimal",
        "--split-compile=",
        "--disable-warnings",
        "-w",
    ];
    known.iter().any(|k| option.starts_with(k)).then(Vec::new)
}

unsafe fn program<'a>(raw: *mut c_void) -> Option<&'a mut Program> {
    // SAFETY: the caller's promise: null or what nvrtcCreateProgram gave.
    unsafe { raw.cast::<Program>().as_mut() }
}

exports! {
    /// No release has this number, so that what is cached for the one is not taken for the other.
    fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> u32 {
        if major.is_null() || minor.is_null() {
            return INVALID_INPUT;
        }
        *major = 13;
        *minor = 9999;
        0
    }
    fn nvrtcGetErrorString(status: u32) -> *const c_char {
        let text = match status {
            0 => c"NVRTC_SUCCESS",
            INVALID_INPUT => c"NVRTC_ERROR_INVALID_INPUT",
            INVALID_PROGRAM => c"NVRTC_ERROR_INVALID_PROGRAM",
            INVALID_OPTION => c"NVRTC_ERROR_INVALID_OPTION",
            COMPILATION => c"NVRTC_ERROR_COMPILATION",
            _ => c"NVRTC_ERROR unknown",
        };
        text.as_ptr()
    }
    fn nvrtcCreateProgram(
        made: *mut *mut c_void, text: *const c_char, _name: *const c_char, headers: c_int,
        _sources: *const *const c_char, _names: *const *const c_char,
    ) -> u32 {
        if made.is_null() || text.is_null() || headers != 0 {
            return INVALID_INPUT;
        }
        let Ok(text) = CStr::from_ptr(text).to_str() else { return INVALID_INPUT };
        let program = Program { text: text.to_string(), log: CString::default(), image: vec![] };
        *made = Box::into_raw(Box::new(program)).cast();
        0
    }
    fn nvrtcDestroyProgram(made: *mut *mut c_void) -> u32 {
        if made.is_null() || (*made).is_null() {
            return INVALID_PROGRAM;
        }
        drop(Box::from_raw((*made).cast::<Program>()));
        *made = std::ptr::null_mut();
        0
    }
    fn nvrtcCompileProgram(raw: *mut c_void, count: c_int, options: *const *const c_char) -> u32 {
        let Some(program) = program(raw) else { return INVALID_PROGRAM };
        let mut flags = vec![];
        for i in 0..count as usize {
            let option = CStr::from_ptr(*options.add(i)).to_string_lossy();
            match translate(&option) {
                Some(more) => flags.extend(more),
                None => {
                    let text = format!("the software device does not know the option {option}");
                    program.log = CString::new(text).unwrap_or_default();
                    return INVALID_OPTION;
                }
            }
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let made = build(&program.text, &flags, &cache_folder())
            .and_then(|path| std::fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display())));
        match made {
            Ok(library) => {
                program.image = pack(&library);
                0
            }
            Err(log) => {
                program.log = CString::new(log.replace('\0', " ")).unwrap_or_default();
                COMPILATION
            }
        }
    }
    fn nvrtcGetProgramLogSize(raw: *mut c_void, bytes: *mut usize) -> u32 {
        let Some(program) = program(raw) else { return INVALID_PROGRAM };
        *bytes = program.log.as_bytes_with_nul().len();
        0
    }
    fn nvrtcGetProgramLog(raw: *mut c_void, to: *mut c_char) -> u32 {
        let Some(program) = program(raw) else { return INVALID_PROGRAM };
        let log = program.log.as_bytes_with_nul();
        std::ptr::copy_nonoverlapping(log.as_ptr(), to.cast(), log.len());
        0
    }
    fn nvrtcGetCUBINSize(raw: *mut c_void, bytes: *mut usize) -> u32 {
        let Some(program) = program(raw) else { return INVALID_PROGRAM };
        *bytes = program.image.len();
        0
    }
    fn nvrtcGetCUBIN(raw: *mut c_void, to: *mut c_char) -> u32 {
        let Some(program) = program(raw) else { return INVALID_PROGRAM };
        std::ptr::copy_nonoverlapping(program.image.as_ptr(), to.cast(), program.image.len());
        0
    }
    fn nvrtcGetPTXSize(raw: *mut c_void, bytes: *mut usize) -> u32 {
        nvrtcGetCUBINSize(raw, bytes)
    }
    fn nvrtcGetPTX(raw: *mut c_void, to: *mut c_char) -> u32 {
        nvrtcGetCUBIN(raw, to)
    }
}
