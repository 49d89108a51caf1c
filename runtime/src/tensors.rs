//! Tensors on the host: where weights and data come from, and safetensors files.

use crate::error::{Error, Result};
use crate::files::{self, InputFile, write_whole};
use precast_plan::words::suggestion;
use precast_plan::{DType, Kind, TensorHeader};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// What an element of a host tensor is: a format of plans, or one that files have besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    Plan(DType),
    F64,
    I16,
    I8,
}

impl Element {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Element::Plan(d) => d.size(),
            Element::F64 => 8,
            Element::I16 => 2,
            Element::I8 => 1,
        }
    }

    fn is_real(self) -> bool {
        matches!(self, Element::F64) || matches!(self, Element::Plan(d) if d.is_real())
    }
}

/// A dense row-major tensor on the host, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor<'a> {
    pub element: Element,
    pub shape: Vec<u64>,
    pub bytes: Cow<'a, [u8]>,
}

impl HostTensor<'_> {
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.element.size()
    }

    /// Element `i` as f64; exact but for large integers.
    pub(crate) fn real(&self, i: usize) -> f64 {
        let b = &self.bytes[i * self.element.size()..];
        match self.element {
            Element::F64 => f64::from_le_bytes(b[..8].try_into().expect("8 bytes")),
            Element::Plan(d) if d.is_real() => {
                let mut word = [0; 4];
                word[..d.size()].copy_from_slice(&b[..d.size()]);
                f64::from(d.decode(u32::from_le_bytes(word)))
            }
            _ => self.int(i) as f64,
        }
    }

    /// Element `i` as an integer.
    pub(crate) fn int(&self, i: usize) -> i64 {
        let b = &self.bytes[i * self.element.size()..];
        match self.element {
            Element::Plan(DType::I64) => i64::from_le_bytes(b[..8].try_into().expect("8 bytes")),
            Element::Plan(DType::I32) => {
                i64::from(i32::from_le_bytes(b[..4].try_into().expect("4 bytes")))
            }
            Element::Plan(DType::U8 | DType::Bool) => i64::from(b[0]),
            Element::I16 => i64::from(i16::from_le_bytes(b[..2].try_into().expect("2 bytes"))),
            Element::I8 => i64::from(b[0] as i8),
            _ => self.real(i) as i64,
        }
    }

    /// The bytes of elements `from..to` in `dtype`, after `x * scale + shift`, appended to `out`.
    ///
    /// # Errors
    /// If a real would have to become an integer and is none, or an integer does not fit.
    pub fn convert(
        &self,
        range: Range<usize>,
        dtype: DType,
        (scale, shift): (f64, f64),
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let plain = scale == 1.0 && shift == 0.0;
        let size = self.element.size();
        if self.element == Element::Plan(dtype) && plain {
            out.extend_from_slice(&self.bytes[range.start * size..range.end * size]);
            return Ok(());
        }
        out.reserve(range.len() * dtype.size());
        for i in range {
            match dtype.kind() {
                Kind::Real => {
                    // Through f32 as a program would: one rounding to f32, one to the format.
                    let x = (self.real(i) * scale + shift) as f32;
                    out.extend_from_slice(&dtype.encode(x).to_le_bytes()[..dtype.size()]);
                }
                Kind::Int | Kind::Bool => {
                    let x = if plain && !self.element.is_real() {
                        self.int(i)
                    } else {
                        let x = self.real(i) * scale + shift;
                        if x.fract() != 0.0 {
                            let text = format!("{x} is not an integer, which {dtype} needs");
                            return Err(Error::new("R0201", text).help(
                                "the model takes whole numbers here, such as ids or numbers of classes",
                            ));
                        }
                        x as i64
                    };
                    let fits = match dtype {
                        DType::I32 => i32::try_from(x).is_ok(),
                        DType::U8 => u8::try_from(x).is_ok(),
                        DType::Bool => x == 0 || x == 1,
                        _ => true,
                    };
                    if !fits {
                        let text = format!("{x} does not fit {dtype}");
                        return Err(Error::new("R0202", text).help(match dtype {
                            DType::U8 => "u8 holds 0 to 255",
                            DType::Bool => "bool holds 0 and 1",
                            _ => "i32 holds -2147483648 to 2147483647",
                        }));
                    }
                    out.extend_from_slice(&x.to_le_bytes()[..dtype.size()]);
                }
            }
        }
        Ok(())
    }

    /// All elements as f32, for reports and tests.
    pub fn to_f32(&self) -> Vec<f32> {
        (0..self.elements()).map(|i| self.real(i) as f32).collect()
    }

    /// All elements as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        (0..self.elements()).map(|i| self.real(i)).collect()
    }

    /// A tensor of f32 values.
    pub fn from_f32(shape: &[u64], values: &[f32]) -> HostTensor<'static> {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        HostTensor {
            element: Element::Plan(DType::F32),
            shape: shape.to_vec(),
            bytes: Cow::Owned(bytes),
        }
    }
}

/// Format, shape and bytes of named tensors.
pub type TensorTable = BTreeMap<String, (DType, Vec<u64>, Vec<u8>)>;

/// Where initial weights come from, by name.
pub trait WeightSource {
    /// `None` where the source has no tensor of this name.
    ///
    /// # Errors
    /// Where it has one that cannot be read.
    fn get(&self, name: &str) -> Result<Option<HostTensor<'_>>>;

    /// Bytes of a file beside the model, as a plan's `Init::File` names it.
    ///
    /// # Errors
    /// Where the source has no such file, or it is too short.
    fn part(&self, path: &str, _offset: u64, _len: u64) -> Result<Cow<'_, [u8]>> {
        Err(Error::new("R0303", format!("there is no file `{path}` to take weights from"))
            .at(self.describe()))
    }

    /// For errors: the files looked into.
    fn describe(&self) -> String;

    /// Names present, for suggestions.
    fn names(&self) -> Vec<String>;
}

/// Weights in memory.
impl WeightSource for BTreeMap<String, HostTensor<'_>> {
    fn get(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        Ok(BTreeMap::get(self, name).map(|t| HostTensor {
            element: t.element,
            shape: t.shape.clone(),
            bytes: Cow::Borrowed(&t.bytes),
        }))
    }

    fn describe(&self) -> String {
        "the weights in memory".into()
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// A safetensors file. Its tensors are read as they are asked for, and never mapped: a file that is
/// cut meanwhile is an error.
#[derive(Debug)]
pub struct TensorFile {
    file: InputFile,
    index: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

/// What a file says of a tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub shape: Vec<u64>,
    pub element: Element,
    /// Where its bytes are in the file.
    pub bytes: Range<u64>,
    /// Its format is known to files and not to plans.
    unsupported: Option<Dtype>,
}

impl TensorFile {
    /// # Errors
    /// If the file is missing, truncated or not a safetensors file.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let bad = |text: String| Error::new("R0203", text).at(path.display());
        let file = InputFile::open(path).map_err(|e| {
            let error = bad(format!("cannot open the file: {e}"));
            match files::too_many_open(&e) {
                Some(help) => error.help(help),
                None => error,
            }
        })?;
        let header = TensorHeader::read(&mut file.reader(), file.len()).map_err(bad)?;
        let index = header.tensors.into_iter().map(|t| {
            let shape = t.shape.iter().map(|&n| n as u64).collect();
            let element = element(t.dtype);
            let unsupported = element.is_none().then_some(t.dtype);
            let element = element.unwrap_or(Element::I8);
            (t.name, TensorInfo { shape, element, bytes: t.bytes, unsupported })
        });
        Ok(TensorFile { index: index.collect(), metadata: header.metadata, file })
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The open file, to read parts of tensors.
    pub fn input(&self) -> &InputFile {
        &self.file
    }

    /// The file's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Format, extents and place of a tensor.
    ///
    /// # Errors
    /// If it is absent or of a format that cannot be converted.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        let Some(info) = self.index.get(name) else {
            let known: Vec<&str> = self.index.keys().map(String::as_str).collect();
            let text = format!("the file has no tensor `{name}`");
            return Err(Error::new("R0204", text)
                .at(self.path().display())
                .help(suggestion("tensors", name, &known)));
        };
        match info.unsupported {
            None => Ok(info),
            Some(other) => {
                let text = format!("tensor `{name}` has format {other:?}, which is not supported");
                Err(Error::new("R0205", text).at(self.path().display()).help(
                    "write it as F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U8 or BOOL",
                ))
            }
        }
    }

    /// A tensor by name, read from the file.
    ///
    /// # Errors
    /// As [`TensorFile::info`], and if the file is no longer what was opened.
    pub fn tensor(&self, name: &str) -> Result<HostTensor<'static>> {
        let info = self.info(name)?;
        let bad = |text: String| Error::new("R0203", text).at(self.path().display());
        let mut bytes = vec![0; (info.bytes.end - info.bytes.start) as usize];
        let read = self.file.read_at(&mut bytes, info.bytes.start);
        self.file.unchanged().map_err(|why| bad(format!("the file {why} after it was opened")))?;
        read.map_err(|e| bad(format!("cannot read tensor `{name}`: {e}")))?;
        Ok(HostTensor { element: info.element, shape: info.shape.clone(), bytes: bytes.into() })
    }
}

/// What a plan can take of the formats that files have.
fn element(dtype: Dtype) -> Option<Element> {
    Some(match dtype {
        Dtype::F64 => Element::F64,
        Dtype::F32 => Element::Plan(DType::F32),
        Dtype::F16 => Element::Plan(DType::F16),
        Dtype::BF16 => Element::Plan(DType::Bf16),
        Dtype::F8_E4M3 => Element::Plan(DType::F8e4m3),
        Dtype::F8_E5M2 => Element::Plan(DType::F8e5m2),
        Dtype::I64 => Element::Plan(DType::I64),
        Dtype::I32 => Element::Plan(DType::I32),
        Dtype::I16 => Element::I16,
        Dtype::I8 => Element::I8,
        Dtype::U8 => Element::Plan(DType::U8),
        Dtype::BOOL => Element::Plan(DType::Bool),
        _ => return None,
    })
}

impl WeightSource for TensorFile {
    fn get(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        match self.index.contains_key(name) {
            true => self.tensor(name).map(Some),
            false => Ok(None),
        }
    }

    fn describe(&self) -> String {
        self.path().display().to_string()
    }

    fn names(&self) -> Vec<String> {
        self.index.keys().cloned().collect()
    }
}

/// Writes a safetensors file: into a temporary file beside it first, so that `path` is never half
/// written. The same tensors give the same bytes.
///
/// # Errors
/// If the disk refuses.
pub fn write_tensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &TensorTable,
) -> Result<()> {
    let head = header(metadata, tensors);
    write_whole(path, |file| {
        file.write_all(&head)?;
        tensors.values().try_for_each(|(_, _, bytes)| file.write_all(bytes))
    })
}

/// What stands in a safetensors file before the bytes of its tensors.
pub(crate) fn header(metadata: &BTreeMap<String, String>, tensors: &TensorTable) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut at = 0;
    for (name, (dtype, shape, bytes)) in tensors {
        let dtype = match dtype {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
            DType::F8e4m3 => "F8_E4M3",
            DType::F8e5m2 => "F8_E5M2",
            DType::I64 => "I64",
            DType::I32 => "I32",
            DType::U8 => "U8",
            DType::Bool => "BOOL",
        };
        let end = at + bytes.len();
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut head = serde_json::Value::Object(header).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    [&(head.len() as u64).to_le_bytes(), head.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_read_back_with_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let mut tensors = BTreeMap::new();
        tensors.insert("w".to_string(), (DType::F32, vec![2u64], vec![0, 0, 128, 63, 0, 0, 0, 64]));
        tensors.insert("n".to_string(), (DType::I64, vec![], 7i64.to_le_bytes().to_vec()));
        let meta = BTreeMap::from([("k".to_string(), "v".to_string())]);
        write_tensors(&path, &meta, &tensors).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.tensor("w").unwrap().to_f32(), [1.0, 2.0]);
        assert_eq!(file.tensor("n").unwrap().int(0), 7);
        assert_eq!(file.metadata(), &meta);
        assert_eq!(file.tensor("q").unwrap_err().code, "R0204");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn truncated_and_foreign_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let tensors = BTreeMap::from([("w".to_string(), (DType::U8, vec![64u64], vec![1; 64]))]);
        write_tensors(&path, &BTreeMap::new(), &tensors).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            std::fs::write(&path, &whole[..n]).unwrap();
            assert_eq!(TensorFile::open(&path).err().unwrap().code, "R0203", "{n} bytes");
        }
        assert!(
            TensorFile::open(&dir.path().join("none")).err().unwrap().to_string().contains("none")
        );
    }

    #[test]
    fn conversions_round_and_refuse() {
        let t = HostTensor::from_f32(&[3], &[1.0, 2.5, 300.0]);
        let mut out = vec![];
        t.convert(0..3, DType::Bf16, (1.0, 0.0), &mut out).unwrap();
        assert_eq!(out.len(), 6);
        assert_eq!(t.convert(1..2, DType::I32, (1.0, 0.0), &mut out).unwrap_err().code, "R0201");
        assert_eq!(t.convert(2..3, DType::U8, (1.0, 0.0), &mut out).unwrap_err().code, "R0202");
        out.clear();
        t.convert(1..2, DType::F32, (2.0, -1.0), &mut out).unwrap();
        assert_eq!(out, 4f32.to_le_bytes());
    }
}
