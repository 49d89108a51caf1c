//! Checkpoints of a run: written while training goes on, pruned, and apart from those of other runs.

use crate::failure::Outcome;
use crate::identity::Identity;
use crate::resume::{listed, path_of};
use precast_runtime::data::DataState;
use precast_runtime::{Checkpoint, Error, Session, Snapshot, files};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

/// A checkpoint that is on the disk, or on its way.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    step: u64,
    /// The loss over the test rows, where it was measured.
    test: Option<f64>,
}

/// Writes the checkpoints of one run, one at a time.
pub struct Saver {
    folder: PathBuf,
    /// What every checkpoint says of the run.
    run: String,
    /// Checkpoints that stay besides the best; `None`: all.
    keep: Option<u64>,
    /// Those of this run, by their steps.
    kept: Vec<Kept>,
    /// Steps of those that this process wrote.
    written: Vec<u64>,
    /// Checkpoints in the folder of another run, or of steps that will be taken again, until the
    /// first of this run takes their place.
    strangers: Vec<PathBuf>,
    /// Where those are now.
    aside: Vec<PathBuf>,
    /// The one on its way.
    writing: Option<(u64, JoinHandle<Result<(), Error>>)>,
}

impl Saver {
    /// For a run that begins, or goes on from `from`.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn new(
        folder: &Path,
        identity: &Identity,
        keep: Option<u64>,
        from: Option<&Checkpoint>,
    ) -> Outcome<Saver> {
        let here = from.filter(|c| {
            let parent = c.path().parent().filter(|p| !p.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            matches!((parent.canonicalize(), folder.canonicalize()), (Ok(a), Ok(b)) if a == b)
        });
        let (mut kept, mut strangers) = (vec![], vec![]);
        for (step, path) in listed(folder)? {
            // A damaged one is nobody's.
            match here.filter(|c| step <= c.steps()).zip(Checkpoint::peek(&path).ok()) {
                Some((c, own)) if of_one_run(c, &own) => {
                    kept.push(Kept { step, test: own.test_loss() });
                }
                // What somebody put there is in nobody's way, and stays.
                Some(_) => {}
                None => strangers.push(path),
            }
        }
        Ok(Saver {
            folder: folder.into(),
            run: identity.to_json(),
            keep,
            kept,
            written: vec![],
            strangers,
            aside: vec![],
            writing: None,
        })
    }

    /// Whether the test loss decides what is kept.
    pub fn keeps_best(&self) -> bool {
        self.keep.is_some()
    }

    /// Begins to write the state as it is: copies it, and goes on while a thread writes. Waits for
    /// the checkpoint before.
    ///
    /// # Errors
    /// That of the checkpoint before, or of the device.
    pub fn save(
        &mut self,
        session: &Session,
        data: &DataState,
        test: Option<f64>,
    ) -> Result<(), Error> {
        self.wait()?;
        let step = session.steps();
        let path = path_of(&self.folder, step);
        let snapshot = session.snapshot(data)?.with_run(&self.run).with_test_loss(test);
        let test = test.filter(|t| t.is_finite());
        self.kept.retain(|k| k.step != step);
        self.kept.push(Kept { step, test });
        self.written.retain(|s| *s != step);
        self.written.push(step);
        // The one of the same step is replaced.
        let strangers: Vec<(PathBuf, PathBuf)> = std::mem::take(&mut self.strangers)
            .into_iter()
            .filter(|s| *s != path)
            .map(|s| {
                let aside = aside(&s);
                (s, aside)
            })
            .collect();
        self.aside.extend(strangers.iter().map(|(_, aside)| aside.clone()));
        let old = self.superfluous();
        self.written.retain(|s| !old.contains(s));
        let old: Vec<PathBuf> = old.into_iter().map(|s| path_of(&self.folder, s)).collect();
        let to = path.clone();
        let writer = thread::spawn(move || write(&snapshot, &to, &strangers, &old));
        self.writing = Some((step, writer));
        Ok(())
    }

    /// [`Saver::save`], unless the state after this step was saved: a checkpoint that was saved when
    /// its time came is exact in the running statistics, too.
    ///
    /// # Errors
    /// As [`Saver::save`].
    pub fn keep(&mut self, session: &Session, data: &DataState) -> Result<(), Error> {
        if self.has(session.steps()) { Ok(()) } else { self.save(session, data, None) }
    }

    /// Takes out of the list the steps of checkpoints that go once the newest is on the disk.
    fn superfluous(&mut self) -> Vec<u64> {
        let Some(keep) = self.keep else { return vec![] };
        let best = self.best().map(|b| b.step);
        let from = self.kept.len().saturating_sub(keep as usize);
        let (old, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.kept)
            .into_iter()
            .enumerate()
            .partition(|(i, k)| *i < from && Some(k.step) != best);
        self.kept = stay.into_iter().map(|(_, k)| k).collect();
        old.into_iter().map(|(_, k)| k.step).collect()
    }

    /// The one with the least test loss; of equal ones the first.
    fn best(&self) -> Option<&Kept> {
        let tested = self.kept.iter().filter(|k| k.test.is_some());
        tested.min_by(|a, b| a.test.partial_cmp(&b.test).expect("finite"))
    }

    /// Where the checkpoint after `step` is.
    pub fn path(&self, step: u64) -> PathBuf {
        path_of(&self.folder, step)
    }

    /// Whether this process has saved the state after `step`.
    fn has(&self, step: u64) -> bool {
        self.written.contains(&step)
    }

    /// Gives the error of a checkpoint that could not be written, once that is known.
    ///
    /// # Errors
    /// That one.
    pub fn poll(&mut self) -> Result<(), Error> {
        let ended = self.writing.as_ref().is_some_and(|(_, writer)| writer.is_finished());
        if ended { self.wait() } else { Ok(()) }
    }

    /// Waits until the last checkpoint is on the disk.
    ///
    /// # Errors
    /// If it could not be written.
    pub fn wait(&mut self) -> Result<(), Error> {
        let Some((step, writer)) = self.writing.take() else { return Ok(()) };
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if written.is_err() {
            self.written.retain(|s| *s != step);
            self.kept.retain(|k| k.step != step);
        }
        written
    }

    /// Checkpoints of this process that are there, by their steps.
    pub fn saved(&self) -> Vec<PathBuf> {
        self.written.iter().map(|s| path_of(&self.folder, *s)).collect()
    }

    /// Where checkpoints are now that were in the folder and are not of this run.
    pub fn aside(&self) -> &[PathBuf] {
        &self.aside
    }

    /// The checkpoint with the least test loss, and the loss.
    pub fn best_path(&self) -> Option<(PathBuf, f64)> {
        self.best().map(|b| (path_of(&self.folder, b.step), b.test.expect("it was compared")))
    }
}

impl Drop for Saver {
    /// Whatever ends the run, a checkpoint that has been begun is finished.
    fn drop(&mut self) {
        if let Some((_, writer)) = self.writing.take()
            && let Ok(Err(e)) = writer.join()
        {
            tell!("{e}");
        }
    }
}

/// Whether one run wrote both.
fn of_one_run(a: &Checkpoint, b: &Checkpoint) -> bool {
    match (Identity::saved(a), Identity::saved(b)) {
        (Ok(Some(a)), Ok(Some(b))) => !a.is_another(&b),
        // Nobody can tell.
        _ => false,
    }
}

/// A name beside a file's that no file has.
fn aside(path: &Path) -> PathBuf {
    let mut names = (1..).map(|n| {
        let mut name = path.as_os_str().to_owned();
        name.push(if n == 1 { ".old".into() } else { format!(".old{n}") });
        PathBuf::from(name)
    });
    names.find(|n| n.symlink_metadata().is_err()).expect("there are more names than files")
}

/// Writes a checkpoint, and then removes what it makes superfluous.
fn write(
    snapshot: &Snapshot,
    path: &Path,
    strangers: &[(PathBuf, PathBuf)],
    old: &[PathBuf],
) -> Result<(), Error> {
    // Before the first of this run is there, so that a folder never holds those of two.
    for (stranger, aside) in strangers {
        files::rename(stranger, aside)?;
    }
    snapshot.write(path)?;
    for old in old {
        files::remove(old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saver(keep: Option<u64>, kept: &[(u64, Option<f64>)]) -> Saver {
        Saver {
            folder: "out".into(),
            run: String::new(),
            keep,
            kept: kept.iter().map(|&(step, test)| Kept { step, test }).collect(),
            written: vec![],
            strangers: vec![],
            aside: vec![],
            writing: None,
        }
    }

    #[test]
    fn the_newest_and_the_best_stay() {
        let tested =
            [(2, Some(0.5)), (4, Some(0.25)), (6, Some(0.25)), (8, None), (10, Some(0.75))];
        let mut s = saver(Some(2), &tested);
        assert_eq!(s.superfluous(), [2, 6]);
        assert_eq!(s.kept.iter().map(|k| k.step).collect::<Vec<_>>(), [4, 8, 10]);
        assert_eq!(s.best_path(), Some(("out/checkpoint-4.safetensors".into(), 0.25)));
        assert_eq!(s.superfluous(), [0; 0], "nothing more");
        // Where nothing was tested, none is the best.
        let mut s = saver(Some(1), &[(2, None), (4, None)]);
        assert_eq!((s.superfluous(), s.best_path()), (vec![2], None));
        let mut s = saver(None, &tested);
        assert_eq!(s.superfluous(), [0; 0]);
    }
}
