//! The checkpoint file: a safetensors file whose metadata says where a run stands and what it is, with
//! a checksum over every byte.

use crate::data::DataState;
use crate::error::{Error, Result};
use crate::files::{InputFile, write_whole};
use crate::tensors::{TensorFile, TensorTable, header};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// The format this version writes. Files of format 1 do not state theirs, and have no checksum.
const FORMAT: u64 = 2;

/// Keys of the metadata. A file of format 1 has the first four and no other.
const DATA: &str = "precast.data";
const MODEL: &str = "precast.model";
const SEED: &str = "precast.seed";
const STEP: &str = "precast.step";
const FORMAT_KEY: &str = "precast.format";
const CHECKSUM: &str = "precast.checksum";
const RUN: &str = "precast.run";
const TEST: &str = "precast.test";

/// State of a run, copied from where it is trained: it can be written while training goes on.
#[derive(Debug)]
pub struct Snapshot {
    metadata: BTreeMap<String, String>,
    tensors: TensorTable,
}

impl Snapshot {
    pub(crate) fn new(
        (model, seed, step): (&str, u64, u64),
        data: &DataState,
        tensors: TensorTable,
    ) -> Snapshot {
        let metadata = BTreeMap::from([
            (DATA.to_string(), serde_json::to_string(data).expect("a few numbers")),
            (MODEL.to_string(), model.to_string()),
            (SEED.to_string(), seed.to_string()),
            (STEP.to_string(), step.to_string()),
            (FORMAT_KEY.to_string(), FORMAT.to_string()),
        ]);
        Snapshot { metadata, tensors }
    }

    /// Says what the run is, in words of the caller's; [`Checkpoint::run`] gives them again.
    #[must_use]
    pub fn with_run(mut self, run: &str) -> Snapshot {
        self.metadata.insert(RUN.to_string(), run.to_string());
        self
    }

    /// Says the loss over the test rows with these weights.
    #[must_use]
    pub fn with_test_loss(mut self, loss: Option<f64>) -> Snapshot {
        if let Some(loss) = loss.filter(|x| x.is_finite()) {
            self.metadata.insert(TEST.to_string(), serde_json::json!({ "loss": loss }).to_string());
        }
        self
    }

    /// Writes the file, as a whole or not at all. The same state gives the same bytes.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut metadata = self.metadata.clone();
        metadata.insert(CHECKSUM.to_string(), BLANK.to_string());
        let mut head = header(&metadata, &self.tensors);
        let at = place_of(&head, BLANK).expect("just written");
        let bodies = || self.tensors.values().map(|(_, _, bytes)| bytes.as_slice());
        let mut state = Xxh3::new();
        state.update(&head);
        bodies().for_each(|bytes| state.update(bytes));
        let sum = format!("{:032x}", state.digest128());
        head[at..at + BLANK.len()].copy_from_slice(sum.as_bytes());
        write_whole(path, |file| {
            file.write_all(&head)?;
            bodies().try_for_each(|bytes| file.write_all(bytes))
        })
    }
}

/// What stands where the checksum will, while it is computed.
const BLANK: &str = "00000000000000000000000000000000";

/// Where in a file's header the checksum `sum` is.
fn place_of(head: &[u8], sum: &str) -> Option<usize> {
    let entry = format!("\"{CHECKSUM}\":\"{sum}\"");
    let at = head.windows(entry.len()).position(|w| w == entry.as_bytes())?;
    Some(at + entry.len() - 1 - sum.len())
}

/// Whether a file's checksum is `sum`, which its header says.
fn is_whole(file: &InputFile, sum: &str) -> io::Result<bool> {
    let mut length = [0; 8];
    file.read_at(&mut length, 0)?;
    let end = u64::from_le_bytes(length).saturating_add(8);
    if end > file.len() || sum.len() != BLANK.len() {
        return Ok(false);
    }
    let mut head = vec![0; end as usize];
    file.read_at(&mut head, 0)?;
    let Some(at) = place_of(&head, sum) else { return Ok(false) };
    head[at..at + BLANK.len()].copy_from_slice(BLANK.as_bytes());
    let mut state = Xxh3::new();
    state.update(&head);
    let mut buffer = vec![0; 1 << 20];
    let mut from = end;
    while from < file.len() {
        let n = (file.len() - from).min(buffer.len() as u64);
        let part = &mut buffer[..n as usize];
        file.read_at(part, from)?;
        state.update(part);
        from += n;
    }
    Ok(format!("{:032x}", state.digest128()) == sum)
}

/// A checkpoint whose bytes are those that were written.
#[derive(Debug)]
pub struct Checkpoint {
    file: TensorFile,
    data: DataState,
    seed: u64,
    steps: u64,
    test_loss: Option<f64>,
}

impl Checkpoint {
    /// Opens a file and verifies its checksum. One of format 1, which earlier versions wrote, has
    /// none; then [`Checkpoint::run`] has nothing either.
    ///
    /// # Errors
    /// `R0203` for what is no safetensors file, `R0508` for one that is no checkpoint, is damaged or
    /// of a later format.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let checkpoint = Checkpoint::peek(path)?;
        let Some(sum) = checkpoint.file.metadata().get(CHECKSUM) else { return Ok(checkpoint) };
        let file = checkpoint.file.input();
        let bad = |text: String| Error::new("R0508", text).at(path.display());
        let whole =
            is_whole(file, sum).map_err(|e| bad(format!("cannot read the checkpoint: {e}")))?;
        file.unchanged().map_err(|why| bad(format!("the checkpoint {why} while it was read")))?;
        if whole {
            return Ok(checkpoint);
        }
        let text = "the checkpoint is damaged: its checksum is not that of its bytes";
        Err(bad(text.into())
            .help("resume from another; `--resume auto` takes the newest that is whole"))
    }

    /// Reads what the file says of itself, without verifying the checksum.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn peek(path: &Path) -> Result<Checkpoint> {
        let file = TensorFile::open(path)?;
        let bad = |text: String| Error::new("R0508", text).at(path.display());
        let meta = file.metadata();
        let need = |key: &str| {
            let value = meta.get(key).map(String::as_str);
            value.ok_or_else(|| bad(format!("this is not a checkpoint: it has no `{key}`")))
        };
        let damaged = |key: &str| bad(format!("the checkpoint's `{key}` is damaged"));
        let data = serde_json::from_str(need(DATA)?).map_err(|_| damaged(DATA))?;
        let steps = need(STEP)?.parse().map_err(|_| damaged(STEP))?;
        let seed = need(SEED)?.parse().map_err(|_| damaged(SEED))?;
        need(MODEL)?;
        match meta.get(FORMAT_KEY).map(|f| f.parse::<u64>()) {
            // Any other key is that of a later format, or one that was damaged.
            None => {
                let known = [DATA, MODEL, SEED, STEP];
                if let Some(key) = meta.keys().find(|k| !known.contains(&k.as_str())) {
                    return Err(bad(format!("the checkpoint has `{key}` and no `{FORMAT_KEY}`")));
                }
            }
            Some(Ok(FORMAT)) => {
                need(CHECKSUM)?;
            }
            Some(Ok(later)) => {
                return Err(bad(format!(
                    "the checkpoint has format {later}, and this version of Precast reads 1 and {FORMAT}"
                ))
                .help("resume with the version that wrote it"));
            }
            Some(Err(_)) => return Err(damaged(FORMAT_KEY)),
        }
        let test = meta.get(TEST).map(|t| {
            let test: serde_json::Value = serde_json::from_str(t).map_err(|_| damaged(TEST))?;
            test.get("loss").and_then(serde_json::Value::as_f64).ok_or_else(|| damaged(TEST))
        });
        let test_loss = test.transpose()?;
        Ok(Checkpoint { file, data, seed, steps, test_loss })
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn file(&self) -> &TensorFile {
        &self.file
    }

    /// Where in which data the run stood.
    pub fn data(&self) -> &DataState {
        &self.data
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Optimizer steps taken, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What the run is, as its writer said; `None` in a file of format 1.
    pub fn run(&self) -> Option<&str> {
        self.file.metadata().get(RUN).map(String::as_str)
    }

    /// The loss over the test rows, where it was measured.
    pub fn test_loss(&self) -> Option<f64> {
        self.test_loss
    }
}

/// A checkpoint that a session cannot take.
pub(crate) fn unfit(path: &Path, code: &'static str, text: String) -> Error {
    Error::new(code, text)
        .at(path.display())
        .help("resume with the recipe the checkpoint was made with")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Position;
    use precast_plan::DType;
    use std::fs;

    fn snapshot() -> Snapshot {
        let data = DataState {
            position: Position { epoch: 1, batch: 2 },
            rows: 24,
            batch: 4,
            split: 0.25,
            shuffle: true,
            seed: 7,
        };
        let tensors = BTreeMap::from([
            ("w".to_string(), (DType::F32, vec![2u64], vec![0, 0, 128, 63, 0, 0, 0, 64])),
            // The name of the metadata's key, in another place.
            (CHECKSUM.to_string(), (DType::I64, vec![], vec![3; 8])),
        ]);
        Snapshot::new(("net", 7, 5), &data, tensors).with_run("{\"a\":1}").with_test_loss(Some(0.5))
    }

    #[test]
    fn a_checkpoint_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        snapshot().write(&path).unwrap();
        let c = Checkpoint::open(&path).unwrap();
        assert_eq!(
            (c.steps(), c.seed(), c.run(), c.test_loss()),
            (5, 7, Some("{\"a\":1}"), Some(0.5))
        );
        assert_eq!(c.data().position, Position { epoch: 1, batch: 2 });
        assert_eq!(c.file().tensor("w").unwrap().to_f32(), [1.0, 2.0]);
        let first = fs::read(&path).unwrap();
        snapshot().write(&path).unwrap();
        assert!(fs::read(&path).unwrap() == first, "the same state gives the same bytes");
        // A loss that is no number is not kept.
        snapshot().with_test_loss(Some(f64::NAN)).write(&path).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().test_loss(), Some(0.5));
    }

    #[test]
    fn every_byte_is_covered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        snapshot().write(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for i in 0..whole.len() {
            for flip in [1, 0x20, 0xff] {
                let mut bytes = whole.clone();
                bytes[i] ^= flip;
                fs::write(&path, &bytes).unwrap();
                let e = Checkpoint::open(&path).err();
                let e = e.unwrap_or_else(|| panic!("byte {i} ^ {flip:#x} passes"));
                assert!(matches!(e.code, "R0203" | "R0508"), "{e}");
            }
        }
        for n in 0..whole.len() {
            fs::write(&path, &whole[..n]).unwrap();
            assert!(Checkpoint::open(&path).is_err(), "{n} bytes pass");
        }
        fs::write(&path, [&whole[..], b"\0"].concat()).unwrap();
        assert!(Checkpoint::open(&path).is_err(), "another byte passes");
        fs::write(&path, &whole).unwrap();
        Checkpoint::open(&path).unwrap();
    }

    #[test]
    fn other_formats_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let write = |change: &dyn Fn(&mut BTreeMap<String, String>)| {
            let Snapshot { mut metadata, tensors } = snapshot();
            change(&mut metadata);
            crate::tensors::write_tensors(&path, &metadata, &tensors).unwrap();
            Checkpoint::open(&path)
        };
        // Format 1 had four keys.
        let first = write(&|m| m.retain(|k, _| [DATA, MODEL, SEED, STEP].contains(&k.as_str())));
        let first = first.unwrap();
        assert_eq!((first.steps(), first.run(), first.test_loss()), (5, None, None));
        let later = write(&|m| {
            m.insert(FORMAT_KEY.into(), "3".into());
        });
        let e = later.err().unwrap();
        assert!(e.code == "R0508" && e.message.contains("format 3"), "{e}");
        type Change = fn(&mut BTreeMap<String, String>);
        let changes: [(&str, Change); 4] = [
            ("no checksum", |_| ()),
            ("no format", |m| drop(m.remove(FORMAT_KEY))),
            ("no step", |m| drop(m.remove(STEP))),
            ("no model", |m| drop(m.remove(MODEL))),
        ];
        for (what, change) in changes {
            assert_eq!(write(&change).err().map(|e| e.code), Some("R0508"), "{what}");
        }
    }
}
