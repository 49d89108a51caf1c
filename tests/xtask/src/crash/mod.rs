//! `cargo xtask crash`: training runs that are killed, cut off, run out of disk, lose their data, meet
//! a second run, are asked to end. Each is resumed until it comes to its end; then weights, averages,
//! log and checkpoints are those of a run that nothing happened to, bit by bit.

mod check;
mod harm;
mod lab;

use crate::fuzz::mutate::rng::Rng;
use harm::Harm;
use lab::Lab;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Interrupt training runs and hold what they come to against uninterrupted ones.
#[derive(clap::Args)]
pub struct Args {
    /// Runs to kill with -9; other things happen to as many others.
    #[arg(long, default_value_t = 20)]
    kills: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The program; built where this is not given.
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Folders of runs that went wrong are kept.
const MOST_FAULTS: usize = 10;

fn build(root: &Path) -> PathBuf {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["build", "--release", "--locked", "--bin", "precast"])
        .current_dir(root)
        .status()
        .unwrap_or_else(|e| panic!("cargo: {e}"));
    assert!(status.success(), "the build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| root.join("target")).join("release/precast")
}

/// What happened so far.
#[derive(Default)]
struct Tally {
    /// How often each harm was done, and how often a run ended before it could be.
    done: BTreeMap<Harm, (u64, u64)>,
    runs: u64,
    finished: u64,
    faults: usize,
}

/// Whether nothing was lost.
pub fn run(args: &Args) -> bool {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("it exists");
    let binary = match &args.binary {
        Some(b) => b.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", b.display())),
        None => build(&root),
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let labs = Lab::all(&root, &binary, folder.path());
    for lab in &labs {
        println!("{:<8} {:.1} s uninterrupted", lab.name, lab.time.as_secs_f64());
    }
    let (mut rng, mut tally, begin) = (Rng::new(args.seed), Tally::default(), Instant::now());
    let kills = |t: &Tally| -> u64 {
        t.done.iter().filter(|(h, _)| h.is_kill()).map(|(_, (done, _))| done).sum()
    };
    // Every chain of runs begins with an empty folder and ends with a run that came to its end.
    for chain in 0.. {
        if kills(&tally) >= args.kills || tally.faults >= MOST_FAULTS {
            break;
        }
        let lab = &labs[chain % labs.len()];
        let out = lab.folder.join(format!("run-{chain}"));
        match chain_of(lab, &out, &mut rng, &mut tally) {
            Ok(()) => fs::remove_dir_all(&out).expect("it is ours"),
            Err(e) => {
                tally.faults += 1;
                println!("FAULT in {} ({}): {e}", out.display(), lab.name);
            }
        }
    }
    println!("{:<12} {:>6} {:>9}", "what", "done", "too late");
    for (harm, (done, late)) in &tally.done {
        println!("{:<12} {done:>6} {late:>9}", format!("{harm:?}"));
    }
    println!(
        "{} kills in {} runs, {} of them to the end, {} faults, {:.0} s",
        kills(&tally),
        tally.runs,
        tally.finished,
        tally.faults,
        begin.elapsed().as_secs_f64()
    );
    if tally.faults > 0 {
        println!("the folders are kept: {}", folder.keep().display());
    }
    tally.faults == 0
}

/// One folder, until a run into it comes to its end.
fn chain_of(lab: &Lab, out: &Path, rng: &mut Rng, tally: &mut Tally) -> Result<(), String> {
    // A disk that refuses a line of the log ends the log and not the run, which says so.
    let mut logged = true;
    // After some harm the rest is left in peace, or a run would never end.
    for round in 0..64 {
        let kill = round < 12 && rng.one_in(2);
        let harm = match kill {
            true => [Harm::Kill, Harm::KillInWrite][rng.below(2)],
            // Locks and signals come with a program that finds checkpoints by itself.
            false if lab.auto => *rng.of(&Harm::ALL).expect("there are some"),
            false => Harm::ALL[rng.below(6)],
        };
        let before = check::newest(out);
        let ended = harm::run(lab, out, harm, rng).map_err(|e| format!("{harm:?}: {e}"))?;
        tally.runs += 1;
        let count = tally.done.entry(harm).or_default();
        if ended.harmed {
            count.0 += 1
        } else {
            count.1 += 1
        }
        let context = |e: String| format!("after {harm:?}, round {round}: {e}");
        check::said(&ended.said).map_err(context)?;
        logged &= !ended.said.contains("The run goes on without its log.");
        if harm.taints() && ended.harmed {
            // The run may have read numbers that are not the recipe's: what it wrote is worth nothing.
            fs::remove_dir_all(out)
                .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
                .map_err(|e| e.to_string())?;
            logged = true;
            continue;
        }
        check::folder(lab, out).map_err(context)?;
        let after = check::newest(out);
        if after < before {
            return Err(context(format!("the newest checkpoint was {before} and is {after}")));
        }
        if ended.status.success() {
            tally.finished += 1;
            return check::finished(lab, out, logged).map_err(context);
        }
    }
    Err("64 runs did not come to an end".into())
}
