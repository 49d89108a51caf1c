//! `cargo xtask fuzz`: changed inputs for every reader, until the time is up. Whatever an input says,
//! the answer is a result or an error; a panic, more than 10 s of the processor, more than 2 GiB, or
//! the end of the process is a finding.
//!
//! Why not libFuzzer: its targets need a build of their own, its loop ends with the first finding, and
//! what it changes are bytes. Its counters are used where they help (`--guided`).

mod corpus;
mod coverage;
mod memory;
pub mod mutate;
mod targets;
mod work;
pub mod worker;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use targets::Target;
use worker::Report;

/// Give changed inputs to every reader of the compiler and the runtime.
#[derive(clap::Args)]
pub struct Args {
    /// Minutes, over all targets.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Only these targets; may be repeated.
    #[arg(long = "target", value_parser = Target::from_name)]
    targets: Vec<Target>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep inputs that reach something new in target/fuzz/corpus, and begin with those kept before.
    #[arg(long)]
    keep: bool,
    /// Build with LLVM's coverage counters (a build of its own) and follow them.
    #[arg(long)]
    guided: bool,
    /// Run one input and say what becomes of it. Needs one --target.
    #[arg(long)]
    input: Option<PathBuf>,
}

/// Folder of what fuzzing leaves.
fn folder(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = target.unwrap_or_else(|| corpus::root().join("target")).join("fuzz").join(name);
    std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    folder
}

/// A temporary folder, in memory where there is such a place: every input is a file.
fn lab_folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()),
        false => tempfile::tempdir(),
    };
    made.expect("a temporary folder")
}

/// Whether nothing was found.
pub fn run(args: &Args) -> bool {
    if let Some(input) = &args.input {
        return one(args, input);
    }
    let program = match args.guided {
        true => guided(),
        false => std::env::current_exe().expect("this program has a path"),
    };
    let targets = match args.targets.as_slice() {
        [] => &Target::ALL[..],
        some => some,
    };
    let share = Duration::from_secs_f64(args.minutes * 60.0 / targets.len() as f64);
    let (mut all, begin) = (Report::default(), Instant::now());
    println!(
        "{:<11} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}  findings",
        "target", "inputs", "inputs/s", "refused", "read", "compiled", "ran", "reached"
    );
    for &target in targets {
        let start = Instant::now();
        let r = fuzz(args, &program, target, share);
        print(target.name(), &r, start.elapsed());
        all.inputs += r.inputs;
        all.findings += r.findings;
        all.reached += r.reached;
        (0..4).for_each(|i| all.stages[i] += r.stages[i]);
    }
    print("all", &all, begin.elapsed());
    if all.findings > 0 {
        println!("findings lie in {}", folder("findings").display());
    }
    all.findings == 0
}

fn print(name: &str, r: &Report, time: Duration) {
    let rate = r.inputs as f64 / time.as_secs_f64().max(1e-9);
    println!(
        "{name:<11} {:>9} {rate:>9.0} {:>8} {:>8} {:>8} {:>8} {:>8}  {}",
        r.inputs, r.stages[0], r.stages[1], r.stages[2], r.stages[3], r.reached, r.findings
    );
}

/// Fuzzes one target for its share of the time, with as many workers, one after the other, as it takes.
fn fuzz(args: &Args, program: &Path, target: Target, share: Duration) -> Report {
    let (findings, end) = (folder("findings"), Instant::now() + share);
    let mut sum = Report::default();
    for round in 0.. {
        let left = end.saturating_duration_since(Instant::now());
        if round > 0 && left.is_zero() {
            break;
        }
        let lab = lab_folder();
        let mut command = Command::new(program);
        command
            .args(["fuzz-worker", "--target", target.name()])
            .args(["--seed", &(args.seed + 1_000_003 * round).to_string()])
            .args(["--millis", &left.as_millis().to_string()])
            .arg("--folder")
            .arg(lab.path())
            .arg("--findings")
            .arg(&findings)
            .stdout(Stdio::piped());
        if args.keep {
            command.arg("--keep").arg(folder(&format!("corpus/{}", target.name())));
        }
        let output = command
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(r) = text.lines().last().and_then(|l| serde_json::from_str::<Report>(l).ok()) {
            sum.inputs += r.inputs;
            sum.findings += r.findings;
            sum.reached = sum.reached.max(r.reached);
            sum.corpus = r.corpus;
            (0..4).for_each(|i| sum.stages[i] += r.stages[i]);
        }
        if let Some(why) = died(output.status) {
            let bytes = std::fs::read(lab.path().join(target.file())).unwrap_or_default();
            let text = format!("{why}, input {}", corpus::name(&bytes));
            sum.findings += u64::from(worker::finding(&findings, target, &bytes, &text));
        }
    }
    sum
}

/// Why a worker ended before its time.
fn died(status: ExitStatus) -> Option<String> {
    match status.code() {
        Some(0) => None,
        Some(memory::EXIT) => Some("more than 2 GiB".into()),
        Some(worker::HANG) => Some("more than 10 s".into()),
        _ => Some(format!("the process ended: {status}")),
    }
}

/// One input, in this process.
fn one(args: &Args, input: &Path) -> bool {
    let [target] = args.targets.as_slice() else { panic!("--input needs one --target") };
    let bytes = std::fs::read(input).unwrap_or_else(|e| panic!("{}: {e}", input.display()));
    let lab = lab_folder();
    let folder = targets::Lab::new(lab.path(), *target);
    std::fs::write(folder.path(*target), &bytes).expect("the folder can be written");
    let start = Instant::now();
    let outcome = folder.run(*target, &bytes);
    println!(
        "{:?} after {:.1} s\n{}",
        outcome.stage,
        start.elapsed().as_secs_f64(),
        outcome.message
    );
    true
}

/// Builds this program with counters; its path.
fn guided() -> PathBuf {
    let flags = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=3",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Ccodegen-units=1",
    ];
    let target = folder("build");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--release", "--locked", "-p", "xtask", "--target-dir"])
        .arg(&target)
        .current_dir(corpus::root())
        .env("RUSTFLAGS", flags.join(" "))
        .status()
        .unwrap_or_else(|e| panic!("cargo: {e}"));
    assert!(status.success(), "the build with coverage counters failed");
    target.join("release/xtask")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every committed input, among them all that once were findings, is answered.
    #[test]
    fn the_corpus_is_answered() {
        let mut answered = 0;
        for target in Target::ALL {
            let folder = lab_folder();
            let lab = targets::Lab::new(folder.path(), target);
            let list = corpus::files(&corpus::committed(target), &[]);
            for path in &list {
                println!("{}", path.display());
                let bytes = std::fs::read(path).expect("the corpus can be read");
                std::fs::write(lab.path(target), &bytes).expect("written");
                lab.run(target, &bytes);
            }
            for bytes in lab.seeds(target) {
                std::fs::write(lab.path(target), &bytes).expect("written");
                let outcome = lab.run(target, &bytes);
                // Descriptions of GPUs are not those of this processor, and their plans run elsewhere.
                let far = target == Target::Table && outcome.stage >= targets::Stage::Read;
                assert!(
                    far || outcome.stage == targets::Stage::Ran,
                    "{}: {outcome:?}",
                    target.name()
                );
            }
            answered += list.len();
        }
        assert!(answered > 50, "the corpus was not found");
    }
}
