//! The header of a safetensors file, read without its tensors: what the compiler knows extents by,
//! and a runtime the places of bytes.

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;

/// The longest header that is read, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;

/// What a safetensors file holds.
#[derive(Clone, Debug)]
pub struct TensorHeader {
    /// In the order of their bytes.
    pub tensors: Vec<HeldTensor>,
    /// The file's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct HeldTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where its bytes are in the file.
    pub bytes: Range<u64>,
}

impl TensorHeader {
    /// Reads the header of a file of `len` bytes; every tensor lies within them, as large as its
    /// shape says.
    ///
    /// # Errors
    /// What is wrong with the file, in words.
    pub fn read(file: &mut impl Read, len: u64) -> Result<TensorHeader, String> {
        let cut = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => "the file ends within its header".to_string(),
            _ => format!("the file cannot be read: {e}"),
        };
        if len == 0 {
            return Err("the file is empty".into());
        }
        let mut first = [0; 8];
        file.read_exact(&mut first).map_err(cut)?;
        let head = u64::from_le_bytes(first);
        // What the file's size does not back is not allocated.
        if head > MAX_HEADER || head > len.saturating_sub(8) {
            return Err("this is no safetensors file, or it ends within its header".into());
        }
        let mut bytes = first.to_vec();
        bytes.resize(8 + head as usize, 0);
        file.read_exact(&mut bytes[8..]).map_err(cut)?;
        // Everything is checked before the length is, which is that of the header here.
        match SafeTensors::read_metadata(&bytes) {
            Ok(_) | Err(SafeTensorError::MetadataIncompleteBuffer) => {}
            Err(e) => return Err(format!("this is not a whole safetensors file: {e}")),
        }
        let meta: Metadata = serde_json::from_slice(&bytes[8..])
            .map_err(|e| format!("this is not a whole safetensors file: {e}"))?;
        let start = 8 + head;
        let mut tensors = vec![];
        let mut end = start;
        for name in meta.offset_keys() {
            let info = meta.info(&name).expect("listed by the file itself");
            let (from, to) = info.data_offsets;
            let bytes = start + from as u64..start.saturating_add(to as u64);
            if bytes.end > len {
                return Err(format!("the file ends inside tensor `{name}`"));
            }
            end = end.max(bytes.end);
            tensors.push(HeldTensor { dtype: info.dtype, shape: info.shape.clone(), name, bytes });
        }
        if end != len {
            return Err(format!("the file has {} bytes more than its header says", len - end));
        }
        let metadata =
            meta.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(TensorHeader { tensors, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<TensorHeader, String> {
        TensorHeader::read(&mut &bytes[..], bytes.len() as u64)
    }

    const TWO: &str = r#"{"__metadata__":{"k":"v"},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},
        "a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;

    #[test]
    fn names_formats_extents_and_places() {
        let h = read(&file(TWO, 11)).unwrap();
        let start = 8 + TWO.len() as u64;
        let list: Vec<_> =
            h.tensors.iter().map(|t| (&*t.name, t.dtype, &t.shape[..], t.bytes.clone())).collect();
        assert_eq!(
            list,
            [
                ("a", Dtype::F32, &[1, 2][..], start..start + 8),
                ("b", Dtype::U8, &[3][..], start + 8..start + 11)
            ]
        );
        assert_eq!(h.metadata["k"], "v");
    }

    #[test]
    fn what_is_no_whole_file_says_why() {
        for (bytes, why) in [
            (vec![], "empty"),
            (vec![1, 2, 3], "within its header"),
            (file(TWO, 10), "ends inside tensor `b`"),
            (file(TWO, 12), "1 bytes more"),
            (file(&TWO.replace("[8,11]", "[8,12]"), 12), "not a whole"),
            (file(&TWO.replace("[8,11]", "[7,10]"), 10), "not a whole"),
            (file("not json", 0), "not a whole"),
            (u64::MAX.to_le_bytes().to_vec(), "no safetensors file"),
        ] {
            let e = read(&bytes).unwrap_err();
            assert!(e.contains(why), "{why}: {e}");
        }
        let whole = file(TWO, 11);
        for n in 0..whole.len() {
            assert!(read(&whole[..n]).is_err(), "{n} bytes");
        }
    }
}
