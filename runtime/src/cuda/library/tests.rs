use super::*;
use std::fs;

fn touch(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "not a library").unwrap();
}

#[test]
fn the_variable_comes_first_then_the_system_then_packages() {
    let dir = tempfile::tempdir().unwrap();
    let (own, pip) = (dir.path().join("own"), dir.path().join("pip"));
    touch(&own.join("libnvrtc.so.12"));
    touch(&pip.join("libnvrtc.so.13"));
    let places = Places {
        first: vec![own.clone()],
        system: true,
        last: vec![pip.clone()],
        ..Places::default()
    };
    let want: Vec<PathBuf> = vec![
        own.join("libnvrtc.so.12"),
        "libnvrtc.so.13".into(),
        pip.join("libnvrtc.so.13"),
        "libnvrtc.so.12".into(),
    ];
    assert_eq!(places.candidates(Kind::Nvrtc, &|_| true), want);
    let twelve: Vec<PathBuf> = vec![own.join("libnvrtc.so.12"), "libnvrtc.so.12".into()];
    assert_eq!(places.candidates(Kind::Nvrtc, &|of| of == Some(12)), twelve);
}

#[test]
fn a_program_that_does_not_answer_is_not_waited_for() {
    let limit = Duration::from_millis(200);
    let shell = |script: &str, limit| output_within(Command::new("sh").args(["-c", script]), limit);
    assert_eq!(shell("echo yes", Duration::from_secs(60)), Some(Some("yes\n".into())));
    assert_eq!(shell("exec sleep 1000", limit), Some(None));
    // A child of its own holds the pipe.
    assert_eq!(shell("sleep 2 & wait", limit), Some(None));
    assert_eq!(output_within(&mut Command::new("/no/such/program"), limit), None);
    let places = Places { unanswered: true, ..Places::default() };
    assert!(places.describe().contains("python3 did not say in 5 s"), "{}", places.describe());
}

#[test]
fn packages_of_the_newest_toolkit_come_first() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["cu12", "cublas", "cu13", "cudnn"] {
        touch(&dir.path().join("nvidia").join(name).join("lib/x.so"));
    }
    touch(&dir.path().join("nvidia/empty/include/x.h"));
    let names: Vec<String> = nvidia_packages(dir.path())
        .iter()
        .map(|p| p.parent().unwrap().file_name().unwrap().to_str().unwrap().to_string())
        .collect();
    assert_eq!(names, ["cu13", "cu12", "cudnn", "cublas"]);
}

#[test]
fn an_environment_is_searched_by_its_layout() {
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("lib/python3.12/site-packages");
    touch(&site.join("nvidia/cu13/lib/libnvrtc.so.13"));
    assert_eq!(site_packages(dir.path()), vec![site.clone()]);
    assert_eq!(nvidia_packages(&site), vec![site.join("nvidia/cu13/lib")]);
}

#[test]
fn what_is_missing_and_where_it_was_looked_for_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places {
        first: vec![dir.path().into()],
        last: vec!["/nowhere".into()],
        ..Places::default()
    };
    let e = Library::open(Kind::CublasLt, &places, None).err().unwrap();
    assert_eq!(e.code, "R0701");
    assert_eq!(e.message, "cuBLASLt was not found (libcublasLt.so.13)");
    let help = e.help.unwrap();
    assert!(help.contains(FOLDERS_VARIABLE) && help.contains("/nowhere"), "{help}");
    assert!(help.contains(dir.path().to_str().unwrap()), "{help}");
}

/// A file that can be opened, under the name of one of NVIDIA's.
fn library(path: &Path) {
    let name = Path::new("libc.so.6");
    // SAFETY: every process has it open.
    std::mem::forget(unsafe { libloading::Library::new(name) }.unwrap());
    std::os::unix::fs::symlink(mapped(name).expect("it is open"), path).unwrap();
}

#[test]
fn the_newest_release_that_the_driver_runs_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places { first: vec![dir.path().into()], ..Places::default() };
    let open = |driver| Library::open(Kind::Nvrtc, &places, Some(DriverVersion(driver)));
    let (thirteen, twelve) = (dir.path().join("libnvrtc.so.13"), dir.path().join("libnvrtc.so.12"));
    library(&thirteen);
    let e = open(12_040).err().unwrap();
    assert_eq!(e.code, "R0702");
    let want = format!(
        "NVRTC in {} is of CUDA 13, and the driver runs CUDA 12.4 and earlier",
        thirteen.display()
    );
    assert_eq!(e.message, want);
    let help = e.help.unwrap();
    assert!(help.contains("`pip install nvidia-cuda-nvrtc-cu12`"), "{help}");
    assert!(help.contains("release 580"), "{help}");
    library(&twelve);
    assert_eq!(open(12_040).unwrap().path, twelve);
    // Minor releases of one major release run what the others make.
    assert_eq!(open(13_000).unwrap().path, thirteen);
    assert_eq!(open(14_010).unwrap().path, thirteen);
    let e = open(11_080).err().unwrap();
    assert!(e.help.unwrap().ends_with(NEW_DRIVER), "no release that is known runs there");
    // Without a driver nothing is known to be too new.
    assert_eq!(Library::open(Kind::Nvrtc, &places, None).unwrap().path, thirteen);
}

#[test]
fn what_is_missing_is_asked_for_in_the_release_that_the_driver_runs() {
    let e = Library::open(Kind::CublasLt, &Places::default(), Some(DriverVersion(12_080)));
    let e = e.err().unwrap();
    assert_eq!((e.code, &*e.message), ("R0701", "cuBLASLt was not found (libcublasLt.so.12)"));
    assert!(e.help.unwrap().contains("`pip install nvidia-cublas-cu12`"));
}

#[test]
fn a_file_that_is_no_library_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libcuda.so.1");
    touch(&file);
    let places = Places { first: vec![dir.path().into()], ..Places::default() };
    let e = Library::open(Kind::Driver, &places, None).err().unwrap();
    assert!(e.message.contains(file.to_str().unwrap()), "{e}");
    assert!(e.message.contains("too short") || e.message.contains("ELF"), "{e}");
    assert!(e.help.unwrap().ends_with("install NVIDIA's driver again, whose file that is"));
    touch(&dir.path().join("libcublasLt.so.12"));
    let old = Some(DriverVersion(11_080));
    let e = Library::open(Kind::CublasLt, &places, Some(DriverVersion(12_080))).err().unwrap();
    assert!(e.message.starts_with("cuBLASLt cannot be opened: "), "{e}");
    let help = e.help.unwrap();
    assert!(help.contains("--force-reinstall nvidia-cublas-cu12`"), "{help}");
    assert!(!help.contains("driver"), "the driver is in order: {help}");
    // Where the driver is too old for every release, that is said, whatever files are there.
    let e = Library::open(Kind::CublasLt, &places, old).err().unwrap();
    assert!(e.help.unwrap().ends_with(NEW_DRIVER));
}

#[test]
fn a_name_that_the_loader_does_not_know_is_no_reason() {
    let places = Places { system: true, ..Places::default() };
    // Where this machine has cuDNN there is nothing to see.
    if let Err(e) = Library::open(Kind::Cudnn, &places, None) {
        assert_eq!(e.message, "cuDNN was not found (libcudnn.so.9)");
    }
}
