//! The process that fuzzes one target: in one thread, input after input. A panic is caught and the
//! next input follows; what ends the process (memory, time, a fault) its parent reads from the file
//! that the input lies in.

use super::coverage::{Coverage, signature};
use super::mutate::{mutate, rng::Rng};
use super::targets::{Lab, Stage, Target};
use super::{corpus, memory};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How a worker ends where an input takes too long.
pub const HANG: i32 = 98;
/// Seconds of the processor that one input may take, and by the clock, for what waits.
const LIMIT: u64 = 10;
const WAITS: u64 = 120;
/// Bytes that one input may take.
const BYTES: usize = 2 << 30;

/// What a worker is told.
#[derive(clap::Args, Clone)]
pub struct Args {
    #[arg(long, value_parser = Target::from_name)]
    pub target: Target,
    #[arg(long)]
    pub seed: u64,
    /// Milliseconds.
    #[arg(long)]
    pub millis: u64,
    /// Folder of the input at hand.
    #[arg(long)]
    pub folder: PathBuf,
    /// Folder of findings.
    #[arg(long)]
    pub findings: PathBuf,
    /// Folder of inputs that reached something new.
    #[arg(long)]
    pub keep: Option<PathBuf>,
}

/// What a worker did.
#[derive(Debug, Default, Clone, serde::Serialize, serde::Deserialize)]
pub struct Report {
    pub inputs: u64,
    /// By [`Stage`].
    pub stages: [u64; 4],
    pub findings: u64,
    pub reached: usize,
    pub corpus: usize,
}

/// What the last panic said, and where.
static PANIC: Mutex<String> = Mutex::new(String::new());
/// Inputs begun, for the thread that watches the time.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Keeps what a panic says instead of printing it.
pub fn quiet_panics() {
    panic::set_hook(Box::new(|info| {
        if let Ok(mut text) = PANIC.lock() {
            *text = info.to_string();
        }
    }));
}

/// Runs one input; what a panic said where it panicked.
pub fn attempt(lab: &Lab, target: Target, bytes: &[u8]) -> Result<(Stage, String), String> {
    std::fs::write(lab.path(target), bytes).expect("the folder can be written");
    panic::catch_unwind(AssertUnwindSafe(|| {
        let outcome = lab.run(target, bytes);
        (outcome.stage, outcome.message)
    }))
    .map_err(|_| PANIC.lock().map(|t| t.clone()).unwrap_or_default())
}

/// Seconds of processor that this process has had.
fn processor() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Ends the process where one input takes too long.
fn watch() {
    std::thread::spawn(|| {
        let mut at = (0, processor(), Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(250));
            let begun = BEGUN.load(Relaxed);
            if begun != at.0 {
                at = (begun, processor(), Instant::now());
            } else if begun > 0
                && (processor() - at.1 > LIMIT as f64 || at.2.elapsed().as_secs() > WAITS)
            {
                // SAFETY: ends the process, which holds nothing but temporary files.
                unsafe { libc::_exit(HANG) }
            }
        }
    });
}

/// Inputs that reached something new, by how far they came.
#[derive(Default)]
struct Pool([Vec<Vec<u8>>; 4]);

impl Pool {
    fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Those that came far more often than those that were refused at once, of which there are many;
    /// the newest more often than the others.
    fn pick(&self, rng: &mut Rng) -> &[u8] {
        let weights = [1, 3, 4, 8];
        loop {
            let at = rng.below(weights.iter().sum());
            let stage = (0..4).find(|&s| at < weights[..=s].iter().sum()).expect("below the sum");
            let list = &self.0[stage];
            let newest = list.len() - list.len().min(16);
            let from = if rng.one_in(3) { newest } else { 0 };
            if let Some(bytes) = rng.of(&list[from..]) {
                return bytes;
            }
            if self.len() == 0 {
                return &[];
            }
        }
    }
}

pub fn run(args: &Args) -> Report {
    let end = Instant::now() + Duration::from_millis(args.millis);
    let lab = Lab::new(&args.folder, args.target);
    quiet_panics();
    watch();
    let begin = corpus::inputs(&lab, args.target, args.keep.as_deref());
    assert!(!begin.is_empty(), "no input to begin with");
    let mut pool = Pool::default();
    let (mut rng, mut coverage) = (Rng::new(args.seed), Coverage::default());
    let mut report = Report::default();
    memory::limit(BYTES);
    while Instant::now() < end {
        // First the inputs as they are, then changes to them.
        let bytes = match begin.get(report.inputs as usize) {
            Some(bytes) => bytes.clone(),
            None => {
                let input = pool.pick(&mut rng);
                let other = pool.pick(&mut rng);
                mutate(args.target.format(), input, other, &mut rng)
            }
        };
        let first = report.inputs < begin.len() as u64;
        coverage.begin();
        BEGUN.fetch_add(1, Relaxed);
        let outcome = attempt(&lab, args.target, &bytes);
        report.inputs += 1;
        match outcome {
            Ok((stage, message)) => {
                report.stages[stage as usize] += 1;
                let new = coverage.is_new(signature(stage as u8, &message));
                if first || new && bytes.len() <= 1 << 18 && pool.len() < 1 << 14 {
                    if let Some(keep) = args.keep.as_ref().filter(|_| !first) {
                        // A hint for later runs, worth no error.
                        let _ = std::fs::write(keep.join(corpus::name(&bytes)), &bytes);
                    }
                    pool.0[stage as usize].push(bytes);
                }
            }
            Err(text) => {
                report.findings += u64::from(finding(&args.findings, args.target, &bytes, &text));
                if first {
                    pool.0[0].push(bytes);
                }
            }
        }
    }
    report.reached = coverage.reached();
    report.corpus = pool.len();
    report
}

/// Writes a finding, unless there is one of the same place; whether it was new.
pub fn finding(folder: &Path, target: Target, bytes: &[u8], text: &str) -> bool {
    // The first line says where.
    let place = text.lines().next().unwrap_or_default();
    let stem = format!("{}-{}", target.name(), corpus::name(place.as_bytes()));
    let file = folder.join(&stem);
    if file.exists() {
        return false;
    }
    let written = std::fs::write(&file, bytes)
        .and_then(|()| std::fs::write(folder.join(format!("{stem}.txt")), text));
    written.unwrap_or_else(|e| panic!("cannot write {}: {e}", file.display()));
    eprintln!("finding: {}: {text}", file.display());
    true
}
