//! What a file is, by its content: for telling a person that a command was given another kind of
//! file than it takes. Nothing is decided by it that a reader of the format would decide otherwise.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Kinds of file that people give to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    Recipe,
    Onnx,
    /// Textual IR.
    Ir,
    Plan,
    Safetensors,
    Checkpoint,
    Ranges,
    TargetTable,
    Csv,
    /// A checkpoint of PyTorch's: a ZIP archive, or a pickle as before 1.6.
    TorchPickle,
    TorchScript,
    /// What `torch.export.save` writes.
    TorchProgram,
    Numpy,
    Folder,
    Empty,
    /// JSON that is no plan and no ranges.
    Json,
    /// TOML that is no recipe and no target table.
    Toml,
    Text,
    Binary,
}

/// What to do where there is no file at `path`: the name of one beside it that may be meant, else the
/// folder that is not there either. `None` where neither is so.
pub fn instead_of(path: &Path) -> Option<String> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Some(format!("there is no folder {}", folder.display()));
    }
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    let name = path.file_name()?.to_str()?;
    let near = crate::words::nearest(name, names.iter().map(String::as_str)).or_else(|| {
        // The ending is what people leave out.
        let mut whole = names.iter().filter(|n| n.rsplit_once('.').is_some_and(|(s, _)| s == name));
        whole.next().map(String::as_str)
    })?;
    Some(format!("did you mean `{}`?", path.with_file_name(near).display()))
}

/// How much of a file is looked at.
const HEAD: usize = 1 << 16;

impl fmt::Display for FileKind {
    /// With its article: `an ONNX model`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Recipe => "a recipe",
            FileKind::Onnx => "an ONNX model",
            FileKind::Ir => "textual IR",
            FileKind::Plan => "a plan",
            FileKind::Safetensors => "a safetensors file",
            FileKind::Checkpoint => "a checkpoint",
            FileKind::Ranges => "a file of ranges",
            FileKind::TargetTable => "a target table",
            FileKind::Csv => "a CSV table",
            FileKind::TorchPickle => "a PyTorch checkpoint (`torch.save`)",
            FileKind::TorchScript => "a TorchScript module (`torch.jit.save`)",
            FileKind::TorchProgram => "a PyTorch program (`torch.export.save`)",
            FileKind::Numpy => "a NumPy file",
            FileKind::Folder => "a folder",
            FileKind::Empty => "an empty file",
            FileKind::Json => "JSON of another kind",
            FileKind::Toml => "TOML of another kind",
            FileKind::Text => "a text",
            FileKind::Binary => "a binary file of no known kind",
        })
    }
}

impl FileKind {
    /// The kind of the file at `path`, from its first 64 KiB, and from the names in an archive.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn of(path: &Path) -> io::Result<FileKind> {
        // Asked before opening: a pipe is opened only once, by who reads it.
        let about = std::fs::metadata(path)?;
        if about.is_dir() {
            return Ok(FileKind::Folder);
        }
        if !about.is_file() {
            return Err(io::Error::other("not a file"));
        }
        let mut file = File::open(path)?;
        let mut head = vec![];
        file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
        if head.starts_with(ZIP) {
            // The names of a large archive's files are at its end.
            let tail = about.len().saturating_sub(HEAD as u64);
            file.seek(SeekFrom::Start(tail))?;
            file.take(HEAD as u64).read_to_end(&mut head)?;
            return Ok(archive(&head));
        }
        Ok(FileKind::of_bytes(&head, about.len()))
    }

    /// The kind of a file of `len` bytes that begins with `head`.
    pub fn of_bytes(head: &[u8], len: u64) -> FileKind {
        if head.is_empty() {
            return FileKind::Empty;
        }
        if head.starts_with(ZIP) {
            return archive(head);
        }
        if head.starts_with(b"\x93NUMPY") {
            return FileKind::Numpy;
        }
        if let Some(kind) = tensors(head, len) {
            return kind;
        }
        let text = match std::str::from_utf8(head) {
            Ok(text) => Some(text),
            // A character that the end of the head cuts is no fault.
            Err(e) if e.error_len().is_none() && len > head.len() as u64 => {
                std::str::from_utf8(&head[..e.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        // What begins as a protobuf may be a text; no text has the bytes that a protobuf goes on with.
        let binary = |c: char| c.is_control() && !"\t\r\n\x0c".contains(c);
        match text.filter(|t| !t.contains(binary)) {
            Some(text) => words(text),
            None if onnx(head) => FileKind::Onnx,
            // Protocol 2 to 5 of pickle: `torch.save` before PyTorch 1.6.
            _ if matches!(head, [0x80, 2..=5, ..]) => FileKind::TorchPickle,
            _ => FileKind::Binary,
        }
    }

    /// Whether the content alone does not say what the file was meant to be, so that its name may.
    pub fn is_vague(self) -> bool {
        matches!(self, FileKind::Json | FileKind::Toml | FileKind::Text | FileKind::Binary)
    }

    /// The kind that a name promises.
    pub fn promised(path: &Path) -> Option<FileKind> {
        Some(match path.extension()?.to_str()? {
            "toml" => FileKind::Recipe,
            "onnx" => FileKind::Onnx,
            "pir" => FileKind::Ir,
            "plan" => FileKind::Plan,
            "safetensors" => FileKind::Safetensors,
            "csv" => FileKind::Csv,
            _ => return None,
        })
    }

    /// What takes files of this kind, for who gave one to something that does not.
    pub fn taken_by(self) -> Option<&'static str> {
        Some(match self {
            FileKind::Recipe => {
                "`precast compile`, `train`, `eval`, `grad`, `compare`, `profile` and `blame` take a \
                 recipe, and `show` and `check` too"
            }
            FileKind::Onnx => {
                "`precast init` writes a recipe for an ONNX model, and `show` and `check` look at one"
            }
            FileKind::Ir => {
                "`precast show` and `precast check` take textual IR, and a recipe names it: \
                 `model = \"….pir\"`"
            }
            FileKind::Plan => "`precast explain`, `diff`, `show` and `check` take a plan",
            FileKind::Safetensors => {
                "a recipe names safetensors files: data in `[data] file`, weights in `[weights] file`"
            }
            FileKind::Checkpoint => {
                "`--resume` of `precast train`, `profile` and `blame` takes a checkpoint"
            }
            FileKind::Ranges => "a recipe names ranges: `[precision] ranges`",
            FileKind::TargetTable => {
                "`--device` takes a target table, and a recipe names one: `[target] table`"
            }
            FileKind::Csv => "a recipe names CSV tables: `[data] format = \"csv\"` and `file`",
            FileKind::TorchPickle | FileKind::TorchScript | FileKind::TorchProgram => {
                "Precast reads models as ONNX: write one with `torch.onnx.export` \
                 (docs/EXPORTING.md)"
            }
            FileKind::Numpy => {
                "data is read from safetensors, CSV and bytes: `safetensors.numpy.save_file` writes \
                 arrays as safetensors"
            }
            FileKind::Folder
            | FileKind::Empty
            | FileKind::Json
            | FileKind::Toml
            | FileKind::Text
            | FileKind::Binary => return None,
        })
    }

    /// Where a file of this kind comes from.
    pub fn made_by(self) -> Option<&'static str> {
        Some(match self {
            FileKind::Recipe => "`precast init MODEL` writes one",
            FileKind::Onnx => "`torch.onnx.export` writes ONNX models (docs/EXPORTING.md)",
            FileKind::Ir => "`precast show MODEL` writes textual IR",
            FileKind::Plan => "`precast compile RECIPE -o FILE.plan` writes one",
            FileKind::Checkpoint => {
                "`precast train` writes them where `[train] checkpoint` says how often"
            }
            FileKind::Safetensors => "`precast train` and `safetensors.torch.save_file` write them",
            FileKind::Ranges => "`precast profile RECIPE -o FILE` writes them",
            FileKind::TargetTable => "`precast calibrate -o FILE` writes one",
            _ => return None,
        })
    }
}

const ZIP: &[u8] = b"PK\x03\x04";

/// An archive, by the names in it.
fn archive(bytes: &[u8]) -> FileKind {
    let has = |name: &str| bytes.windows(name.len()).any(|w| w == name.as_bytes());
    if has("serialized_exported_program") || has("archive_format") || has("models/model.json") {
        FileKind::TorchProgram
    } else if has("/constants.pkl") || has("/code/__torch__") {
        FileKind::TorchScript
    } else if has("/data.pkl") {
        FileKind::TorchPickle
    } else if has(".npy") {
        FileKind::Numpy
    } else {
        FileKind::Binary
    }
}

/// A safetensors file: the length of a JSON object, and the object.
fn tensors(head: &[u8], len: u64) -> Option<FileKind> {
    let header = u64::from_le_bytes(head.get(..8)?.try_into().ok()?);
    // A file that was cut is still one, as long as its header can be told from a text.
    let plausible = (2..1 << 40).contains(&header) && len > 8;
    if !plausible || head.get(8) != Some(&b'{') {
        return None;
    }
    let key = b"\"precast.step\"";
    let checkpoint = head.windows(key.len()).any(|w| w == key);
    Some(if checkpoint { FileKind::Checkpoint } else { FileKind::Safetensors })
}

/// Whether bytes begin as a `ModelProto` does: known fields with their wire types, the version of
/// the IR or the graph among them.
fn onnx(head: &[u8]) -> bool {
    let (mut at, mut version, mut graph) = (0, false, false);
    while at < head.len() {
        let Some((key, next)) = varint(head, at) else { break };
        at = next;
        match (key >> 3, key & 7) {
            (1, 0) => version = true,
            (7, 2) => graph = true,
            // model_version; producer, its version, domain, doc_string, opset_import,
            // metadata_props, training_info, functions.
            (5, 0) | (2..=4 | 6 | 8 | 14 | 20 | 25, 2) => {}
            _ => return false,
        }
        let Some((value, next)) = varint(head, at) else { break };
        at = next;
        if key & 7 == 0 {
            // No release of ONNX's IR comes near this.
            if key >> 3 == 1 && value > 1000 {
                return false;
            }
            continue;
        }
        let Some(end) = usize::try_from(value).ok().and_then(|n| at.checked_add(n)) else {
            return false;
        };
        // What follows is not looked at.
        if end > head.len() {
            break;
        }
        at = end;
    }
    version || graph
}

/// A protobuf varint at `at`, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (i, b) in bytes.get(at..)?.iter().take(10).enumerate() {
        value |= u64::from(b & 0x7f) << (7 * i).min(63);
        if b & 0x80 == 0 {
            return Some((value, at + i + 1));
        }
    }
    None
}

/// A text, by what it says.
fn words(text: &str) -> FileKind {
    let text = text.trim_start_matches('\u{feff}');
    let lines = || text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let Some(first) = lines().next() else { return FileKind::Text };
    if first.starts_with('{') {
        let keys = top_keys(text);
        let has = |names: &[&str]| names.iter().all(|n| keys.iter().any(|k| k == n));
        return if has(&["model", "target"]) {
            FileKind::Plan
        } else if has(&["digest"]) {
            FileKind::Ranges
        } else {
            FileKind::Json
        };
    }
    let statement = first.split('#').next().unwrap_or(first);
    if let ["graph", name] = statement.split_whitespace().collect::<Vec<_>>()[..]
        && !name.contains(',')
    {
        return FileKind::Ir;
    }
    toml(lines()).or_else(|| table(text)).unwrap_or(FileKind::Text)
}

/// Keys of the outermost object, as far as the text goes.
fn top_keys(text: &str) -> Vec<&str> {
    let (mut keys, mut depth, mut rest) = (vec![], 0u32, text);
    while let Some(at) = rest.find(['{', '}', '[', ']', '"']) {
        let byte = rest.as_bytes()[at];
        rest = &rest[at + 1..];
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {
                let mut escaped = false;
                let end = rest.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                let Some(end) = end else { break };
                let (word, after) = (&rest[..end], &rest[end + 1..]);
                if depth == 1 && after.trim_start().starts_with(':') {
                    keys.push(word);
                }
                rest = after;
            }
        }
    }
    keys
}

/// Recipes and target tables by their keys; `None` where lines are not those of TOML.
fn toml<'t>(lines: impl Iterator<Item = &'t str>) -> Option<FileKind> {
    const SECTIONS: [&str; 9] = [
        "weights",
        "data",
        "loss",
        "optimizer",
        "schedule",
        "precision",
        "loss_scale",
        "train",
        "target",
    ];
    const FIGURES: [&str; 4] = ["bandwidth_gbs", "launch_ns", "simple_ns", "convert_ns"];
    let (mut section, mut found) = (None, None);
    for line in lines {
        if let Some(title) = line.strip_prefix('[') {
            let title = title.trim_start_matches('[').split([']', '.']).next().unwrap_or("").trim();
            if SECTIONS.contains(&title) {
                return Some(FileKind::Recipe);
            }
            section = Some(title);
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim().trim_matches('"');
            let bare = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if key.is_empty() || !key.chars().all(bare) {
                return found;
            }
            match (section, key) {
                (None, "model") => return Some(FileKind::Recipe),
                (None, key) if FIGURES.contains(&key) => return Some(FileKind::TargetTable),
                _ => {}
            }
        } else if found.is_none() {
            return None;
        }
        found = Some(FileKind::Toml);
    }
    found
}

/// A table: its first lines have the same number of cells, at least two of them, or one number each.
fn table(text: &str) -> Option<FileKind> {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty()).take(8);
    let (first, rest): (&str, Vec<&str>) = (lines.next()?, lines.collect());
    // The last line may be cut.
    let whole = &rest[..rest.len().saturating_sub(usize::from(rest.len() == 7))];
    let cells = |line: &str| line.split(',').count();
    let number = |cell: &str| cell.trim().trim_matches('"').parse::<f64>().is_ok();
    let is_row = |line: &&str| line.split(',').any(number);
    let same = whole.iter().filter(|l| cells(l) == cells(first)).count();
    let rows = if whole.is_empty() { is_row(&first) } else { whole.iter().any(is_row) };
    // A ragged line is the table's fault, and does not make it another kind of file.
    (rows && same * 2 >= whole.len() && (cells(first) > 1 || whole.iter().all(is_row)))
        .then_some(FileKind::Csv)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bytes: &[u8]) -> FileKind {
        FileKind::of_bytes(bytes, bytes.len() as u64)
    }

    #[test]
    fn texts_are_told_by_what_they_say() {
        for (text, want) in [
            ("", FileKind::Empty),
            ("model = \"m.onnx\"\n", FileKind::Recipe),
            ("# a run\n\n[data]\nbatch = 4\n", FileKind::Recipe),
            ("[train\nsteps = \n", FileKind::Recipe),
            ("name = \"cpu\"\ndevice = \"cpu\"\nlaunch_ns = 3.0\n", FileKind::TargetTable),
            ("[package]\nname = \"x\"\n", FileKind::Toml),
            ("graph demo\n\nforward:\n", FileKind::Ir),
            ("# by hand\ngraph\tdemo\n", FileKind::Ir),
            ("graphs are nice\n", FileKind::Text),
            ("graph size,label\n1,0\n", FileKind::Csv),
            (":a,b\n1,2\n", FileKind::Csv),
            ("\"a\",\"b\"\n1,2\n", FileKind::Csv),
            ("2,3\n4,:\n", FileKind::Csv),
            ("{\"version\": 1, \"model\": \"m\", \"target\": {}}", FileKind::Plan),
            ("{\"version\": 1, \"model\": \"m\", \"digest\": \"0\"}", FileKind::Ranges),
            ("{\"a\": {\"model\": 1, \"target\": 2}}", FileKind::Json),
            ("{\"a\\\"\": 1, \"digest\": 2", FileKind::Ranges),
            ("{}", FileKind::Json),
            ("a,b\n1,2\n3,4\n", FileKind::Csv),
            ("1,2\n3,4\n", FileKind::Csv),
            ("a,b\n1,2\n3\n4,5\n", FileKind::Csv),
            ("label\n0\n1\n", FileKind::Csv),
            ("Dear reader,\nthis is a letter.\n", FileKind::Text),
            ("\n\n", FileKind::Text),
        ] {
            assert_eq!(kind(text.as_bytes()), want, "{text:?}");
        }
        // A character that the head cuts.
        assert_eq!(FileKind::of_bytes(&"graph aé".as_bytes()[..8], 100), FileKind::Ir);
    }

    #[test]
    fn binary_files_are_told_by_their_first_bytes() {
        let tensors = |header: &str| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            kind(&bytes)
        };
        assert_eq!(tensors("{\"w\":{}}"), FileKind::Safetensors);
        let meta = "{\"__metadata__\":{\"precast.step\":\"3\"}}";
        assert_eq!(tensors(meta), FileKind::Checkpoint);
        // ir_version, producer_name, graph (longer than what is here).
        assert_eq!(kind(b"\x08\x08\x12\x07pytorch\x3a\xff\x7f\x0a\x00"), FileKind::Onnx);
        assert_eq!(kind(b"\x3a\x02\x0a\x00"), FileKind::Onnx);
        assert_eq!(kind(b"\x08\x08\x0d\x00\x00\x00\x00\xff"), FileKind::Binary);
        assert_eq!(kind(b"\x80\x02}q\x00."), FileKind::TorchPickle);
        assert_eq!(kind(b"PK\x03\x04....m/data.pkl"), FileKind::TorchPickle);
        assert_eq!(kind(b"PK\x03\x04..m/data.pkl..m/constants.pkl"), FileKind::TorchScript);
        assert_eq!(kind(b"PK\x03\x04....archive_format"), FileKind::TorchProgram);
        assert_eq!(kind(b"PK\x03\x04....a.npy"), FileKind::Numpy);
        assert_eq!(kind(b"\x93NUMPY\x01\x00"), FileKind::Numpy);
        assert_eq!(kind(b"\x7fELF\x02\x01\x01\x00"), FileKind::Binary);
        assert_eq!(kind(&[0; 64]), FileKind::Binary);
    }

    #[test]
    fn files_are_read_and_folders_are_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(FileKind::of(dir.path()).unwrap(), FileKind::Folder);
        let path = dir.path().join("m.pt2");
        // Of an archive larger than what is looked at, names are at the end.
        let mut bytes = b"PK\x03\x04".to_vec();
        bytes.resize(3 * HEAD, 7);
        bytes.extend(b"m/models/model.json");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(FileKind::of(&path).unwrap(), FileKind::TorchProgram);
        assert!(FileKind::of(&dir.path().join("gone")).is_err());
        assert_eq!(
            instead_of(&dir.path().join("n.pt2")),
            Some(format!("did you mean `{}`?", path.display()))
        );
        assert_eq!(instead_of(&dir.path().join("weights.st")), None);
        assert!(instead_of(&dir.path().join("m")).unwrap().ends_with("m.pt2`?"));
        assert!(
            instead_of(&dir.path().join("gone/m.pt2")).unwrap().starts_with("there is no folder")
        );
        assert_eq!(FileKind::promised(Path::new("a/b.plan")), Some(FileKind::Plan));
        assert_eq!(FileKind::promised(Path::new("b")), None);
    }
}
