//! What happens to a run.

use super::lab::Lab;
use crate::fuzz::mutate::rng::Rng;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// -9 at any moment.
    Kill,
    /// -9 while a file is half written.
    KillInWrite,
    /// No file can grow beyond a limit, as on a full disk.
    FullDisk,
    /// The data is cut off.
    Truncate,
    /// The data is removed.
    Vanish,
    /// Other bytes stand where the data was.
    Rewrite,
    /// A second run into the same folder.
    SecondRun,
    Interrupt,
    Terminate,
    /// A request for a checkpoint.
    Checkpoint,
}

impl Harm {
    pub const ALL: [Harm; 10] = [
        Harm::Kill,
        Harm::KillInWrite,
        Harm::FullDisk,
        Harm::Truncate,
        Harm::Vanish,
        Harm::Rewrite,
        Harm::SecondRun,
        Harm::Interrupt,
        Harm::Terminate,
        Harm::Checkpoint,
    ];

    pub fn is_kill(self) -> bool {
        matches!(self, Harm::Kill | Harm::KillInWrite)
    }

    /// Whether data other than the recipe's may have been trained on, so that only what was saved before
    /// is as it was.
    pub fn taints(self) -> bool {
        self == Harm::Rewrite
    }

    /// Whether a run may end so, where it does not go to its end. Before it listens, a signal ends a run as
    /// it ends any process.
    fn may_end(self, status: ExitStatus, said: &str) -> bool {
        let by = |signal: i32| status.signal() == Some(signal);
        let (code, error) = (status.code(), said.contains("error["));
        match self {
            Harm::Kill | Harm::KillInWrite => by(libc::SIGKILL),
            // Nor may what it says find room.
            Harm::FullDisk => matches!(code, Some(1 | 3)),
            Harm::Truncate | Harm::Vanish | Harm::Rewrite => matches!(code, Some(1 | 3)) && error,
            Harm::SecondRun => code == Some(1) && said.contains("error[P0031]"),
            Harm::Interrupt => code == Some(130) || by(libc::SIGINT),
            Harm::Terminate => code == Some(143) || by(libc::SIGTERM),
            Harm::Checkpoint => by(libc::SIGUSR1),
        }
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a signal to a child that has not been waited for, so that the number is still its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// Whether a file in the folder is half written.
fn is_writing(out: &Path) -> bool {
    fs::read_dir(out).into_iter().flatten().flatten().any(|e| {
        let name = e.file_name().to_string_lossy().into_owned();
        name.contains(".partial")
    })
}

/// Limits the size of files of a process to come.
fn limit_files(command: &mut Command, bytes: u64) {
    // SAFETY: between fork and exec; one system call.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

/// What a run came to.
pub struct Ended {
    pub status: ExitStatus,
    /// Standard output and standard error.
    pub said: String,
    /// The harm was done before the run ended.
    pub harmed: bool,
}

/// Runs the recipe into `out` and harms it at a moment between its start and its expected end.
///
/// # Errors
/// Where the run ends in a way that no harm explains.
pub fn run(lab: &Lab, out: &Path, harm: Harm, rng: &mut Rng) -> Result<Ended, String> {
    fs::create_dir_all(out).expect("the folder can be made");
    let file = lab.folder.join("said.txt");
    let output = File::create(&file).expect("the folder can be written");
    let mut command = lab.command("recipe.toml", out, true);
    command.stdout(output.try_clone().expect("a handle")).stderr(output);
    if harm == Harm::FullDisk {
        limit_files(&mut command, rng.next() % 60_000);
    }
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    // Most of the time goes into steps; a few moments lie behind the end.
    let moment = lab.time.mul_f64((rng.next() % 1000) as f64 / 950.0);
    let (begin, mut harmed) = (Instant::now(), harm == Harm::FullDisk);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        let due = begin.elapsed() >= moment;
        let due = due && (harm != Harm::KillInWrite || is_writing(out));
        if due && !harmed {
            harmed = true;
            act(lab, out, harm, &child, rng)?;
        }
        if begin.elapsed() > Duration::from_secs(120) {
            signal(&child, libc::SIGKILL);
            let _ = child.wait();
            return Err("the run did not end in 120 s".into());
        }
        // A write takes less than a millisecond.
        let wait = if harm == Harm::KillInWrite { 20 } else { 500 };
        std::thread::sleep(Duration::from_micros(wait));
    };
    let said = fs::read_to_string(&file).unwrap_or_default();
    lab.restore();
    let explained = status.success() || harmed && harm.may_end(status, &said);
    if !explained {
        return Err(format!("it ended with {status}: {said}"));
    }
    Ok(Ended { status, said, harmed })
}

fn act(lab: &Lab, out: &Path, harm: Harm, child: &Child, rng: &mut Rng) -> Result<(), String> {
    let data = || File::options().write(true).open(&lab.data).expect("the data is there");
    match harm {
        Harm::Kill | Harm::KillInWrite => signal(child, libc::SIGKILL),
        Harm::Interrupt => signal(child, libc::SIGINT),
        Harm::Terminate => signal(child, libc::SIGTERM),
        // Before the run listens, it would end it: there is a log by then, unless that of an earlier run.
        Harm::Checkpoint if out.join("log.jsonl").exists() => signal(child, libc::SIGUSR1),
        Harm::Checkpoint | Harm::FullDisk => {}
        Harm::Truncate => {
            data().set_len(rng.next() % lab.content.len() as u64).expect("the data can be cut");
        }
        Harm::Vanish => fs::remove_file(&lab.data).expect("the data is there"),
        Harm::Rewrite => {
            let mut other = lab.content.clone();
            // The header stays; what stands behind it is other numbers.
            let half = other.len() / 2;
            other[half..].iter_mut().filter(|b| b.is_ascii_digit()).for_each(|b| *b ^= 1);
            fs::write(&lab.data, other).expect("the data can be written");
        }
        Harm::SecondRun => {
            // It is refused, and leaves the first alone; unless the first had ended or not begun.
            let o = lab.command("recipe.toml", out, true).output().map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&o.stderr).into_owned();
            super::check::said(&text)?;
            let refused = o.status.code() == Some(1) && text.contains("error[P0031]");
            if !refused && !o.status.success() {
                return Err(format!("a second run ended with {}: {text}", o.status));
            }
        }
    }
    Ok(())
}
