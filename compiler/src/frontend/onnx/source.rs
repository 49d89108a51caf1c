//! Reading a model file, checking its structure, and finding the bytes of its tensors.

use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::tensor::{Elem, Tensor, checked_elements};
use crate::diagnostic::{Diagnostic, Place, Result};
use indexmap::IndexMap;
use prost::Message;
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Oldest and newest operator set that import knows.
pub const OPSETS: std::ops::RangeInclusive<i64> = 13..=28;

/// The most that a protobuf message may have, and so a model file.
const MAX_BYTES: u64 = i32::MAX as u64;

/// A decoded model whose structure is sound: an opset in range, only standard operators without
/// subgraphs other than branches and loops, every value defined once, nodes in topological order.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub opset: i64,
    pub producer: String,
    pub graph: GraphProto,
    /// Initializers by name.
    pub initializers: IndexMap<String, Initializer>,
    /// Those that the exporter had merged with another of equal value.
    pub copies: BTreeSet<String>,
    /// Nodes of subgraphs, and the names of what subgraphs give.
    pub inner: Vec<NodeProto>,
    pub given: BTreeSet<String>,
    bytes: Bytes,
    on_disk: bool,
}

/// A tensor that the model carries or names.
#[derive(Clone, Debug)]
pub struct Initializer {
    pub elem: Elem,
    pub shape: Vec<usize>,
    pub storage: Storage,
}

/// Where an initializer's bytes are.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In the model file, little-endian, at this offset.
    Raw { offset: u64 },
    /// In the model file, as protobuf numbers; the index among the initializers.
    Fields(usize),
    /// In another file, relative to the model's folder.
    External { location: String, offset: u64 },
}

impl Initializer {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in its file.
    pub fn bytes(&self) -> usize {
        self.elements() * self.elem.size()
    }
}

/// A node's name for people: its own, or `#index`.
pub fn node_label(index: usize, node: &NodeProto) -> String {
    match node.name.as_deref() {
        Some(n) if !n.is_empty() => n.to_string(),
        _ => format!("#{index}"),
    }
}

impl Source {
    /// Opens and decodes a model file.
    ///
    /// # Errors
    /// P0201 to P0204, P0207, P0210 and P0215 of `docs/ERRORS.md`.
    pub fn open(path: &Path) -> Result<Source> {
        let fail = |what: &str, e: std::io::Error| {
            Diagnostic::error("P0201", format!("cannot {what} the model: {e}"))
                .at(Place::File { path: path.into() })
        };
        let file = File::open(path).map_err(|e| fail("open", e))?;
        let meta = file.metadata().map_err(|e| fail("read", e))?;
        if !meta.is_file() {
            return Err(Diagnostic::error("P0201", "the model path is not a file")
                .at(Place::File { path: path.into() })
                .into());
        }
        if meta.len() > MAX_BYTES {
            return Err(Diagnostic::error(
                "P0202",
                "the file is larger than 2 GiB, as no ONNX model is",
            )
            .at(Place::File { path: path.into() })
            .help("weights beyond that are external data, in files beside the model")
            .into());
        }
        // Read and not mapped: a page that another process cuts off meanwhile would end this one.
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(meta.len() as usize)
            .map_err(|_| fail("read", std::io::Error::from(std::io::ErrorKind::OutOfMemory)))?;
        (&file).read_to_end(&mut bytes).map_err(|e| fail("read", e))?;
        let after = file.metadata().map_err(|e| fail("read", e))?;
        if after.len() != meta.len() || after.modified().ok() != meta.modified().ok() {
            return Err(Diagnostic::error("P0201", "the model was written to while it was read")
                .at(Place::File { path: path.into() })
                .help("wait until the export has ended")
                .into());
        }
        let bytes = Bytes::from(bytes);
        Source::decode(path, bytes, true)
    }

    /// Decodes a model that is not a file; `path` names it in messages, and its folder is where
    /// external data is looked for.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Source> {
        Source::decode(path, Bytes::from(bytes), false)
    }

    fn decode(path: &Path, bytes: Bytes, on_disk: bool) -> Result<Source> {
        let file = || Place::File { path: path.into() };
        let model = ModelProto::decode(bytes.clone()).map_err(|e| {
            Diagnostic::error("P0202", format!("this is not a complete ONNX model: {e}"))
                .at(file())
                .help("the file may be truncated, or a Git LFS pointer; export or copy it again")
        })?;
        let opset = opset_of(&model).map_err(|d| d.at(file()))?;
        let ModelProto { graph, functions, producer_name, producer_version, .. } = model;
        let graph = graph.ok_or_else(|| {
            Diagnostic::error("P0202", "the file holds no ONNX graph")
                .at(file())
                .help("is this an ONNX model? An empty or foreign file decodes to an empty model")
        })?;
        if let Some(f) = functions.first() {
            let name = f.name.as_deref().unwrap_or("?");
            return Err(Diagnostic::error(
                "P0215",
                format!("the model has local functions (`{name}`)"),
            )
            .at(file())
            .help("inline them: `onnx.inliner.inline_local_functions(model)`")
            .into());
        }
        if !graph.sparse_initializer.is_empty() {
            return Err(Diagnostic::error("P0207", "sparse initializers are not supported")
                .at(file())
                .help("store them dense")
                .into());
        }
        let producer = [producer_name, producer_version]
            .into_iter()
            .flatten()
            .filter(|s| !s.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        let mut source = Source {
            path: path.into(),
            opset,
            producer,
            graph,
            initializers: IndexMap::new(),
            copies: BTreeSet::new(),
            inner: vec![],
            given: BTreeSet::new(),
            bytes,
            on_disk,
        };
        source.initializers = source.read_initializers()?;
        source.sort_nodes()?;
        source.separate_copies();
        for i in 0..source.graph.node.len() {
            let inner = source.graph.node[i].attribute.iter().filter(|a| a.g.is_some());
            let attributes: Vec<AttributeProto> = inner.cloned().collect();
            source.read_inner(&attributes, 0).map_err(|d| d.at(source.node_place(i)))?;
        }
        Ok(source)
    }

    /// Takes back what the TorchScript exporter does to initializers of equal values outside its
    /// training mode: one is left, and the others are `Identity` nodes under their own names. Two
    /// norms of a network that has not been trained are no tied weights; those have one name.
    fn separate_copies(&mut self) {
        let merged = |node: &NodeProto, known: &IndexMap<String, Initializer>| {
            let (x, y) = (node.input.first()?, node.output.first()?);
            let numbered = node.name.as_deref().is_some_and(|n| n.starts_with("Identity_"));
            let own = !y.is_empty() && !y.starts_with('/') && !y.contains("::");
            let init = known.get(x).filter(|i| i.elem.is_real())?.clone();
            let is = node.op_type.as_deref() == Some("Identity") && numbered && own;
            (is && y.bytes().any(|b| b.is_ascii_alphabetic())).then(|| (y.clone(), init))
        };
        if !self.producer.starts_with("pytorch") {
            return;
        }
        let outputs: BTreeSet<String> =
            self.graph.output.iter().filter_map(|o| o.name.clone()).collect();
        let nodes = std::mem::take(&mut self.graph.node);
        for node in nodes {
            match merged(&node, &self.initializers).filter(|(name, _)| !outputs.contains(name)) {
                Some((name, init)) => {
                    self.copies.insert(name.clone());
                    self.initializers.insert(name, init);
                }
                None => self.graph.node.push(node),
            }
        }
    }

    /// Place of a node.
    pub fn node_place(&self, index: usize) -> Place {
        let node = &self.graph.node[index];
        Place::OnnxNode {
            path: self.path.clone(),
            node: node_label(index, node),
            op: node.op_type.clone().unwrap_or_default(),
        }
    }

    /// Place of a named tensor.
    pub fn tensor_place(&self, name: &str) -> Place {
        Place::Tensor { path: self.path.clone(), tensor: name.into() }
    }

    /// Whether the model is a file that the runtime can read weights from.
    pub fn on_disk(&self) -> bool {
        self.on_disk
    }

    fn read_initializers(&self) -> Result<IndexMap<String, Initializer>> {
        let mut out = IndexMap::new();
        for (i, t) in self.graph.initializer.iter().enumerate() {
            let name = t.name.clone().unwrap_or_default();
            let place = || self.tensor_place(&name);
            let read = self.read_initializer(i, t).map_err(|d| d.at(place()))?;
            if name.is_empty() {
                return Err(Diagnostic::error("P0204", format!("initializer {i} has no name"))
                    .at(place())
                    .into());
            }
            if out.insert(name.clone(), read).is_some() {
                return Err(Diagnostic::error("P0204", "two initializers have this name")
                    .at(place())
                    .into());
            }
        }
        Ok(out)
    }

    fn read_initializer(&self, index: usize, t: &TensorProto) -> Result<Initializer, Diagnostic> {
        let code = t.data_type.unwrap_or(0);
        let elem = Elem::from_onnx(code).ok_or_else(|| {
            let name = Elem::code_name(code);
            Diagnostic::error("P0207", format!("element type {name} is not supported"))
        })?;
        let size = |e: String| Diagnostic::error("P0210", e);
        let (shape, n) = checked_elements(&t.dims).map_err(size)?;
        let bytes = n * elem.size();
        let storage = if t.data_location == Some(1) {
            let get = |key: &str| {
                t.external_data.iter().find(|e| e.key.as_deref() == Some(key))?.value.as_deref()
            };
            let number = |key: &str| match get(key) {
                None => Ok(None),
                Some(s) => s.parse::<u64>().map(Some).map_err(|_| {
                    Diagnostic::error(
                        "P0210",
                        format!("external data: {key} `{s}` is not a number"),
                    )
                }),
            };
            let location = get("location").unwrap_or_default().to_string();
            check_location(&location)?;
            if let Some(len) = number("length")?
                && len != bytes as u64
            {
                return Err(size(format!(
                    "shape {shape:?} needs {bytes} bytes, the external data states {len}"
                )));
            }
            Storage::External { location, offset: number("offset")?.unwrap_or(0) }
        } else if let Some(raw) = &t.raw_data {
            if raw.len() != bytes {
                let have = raw.len();
                return Err(size(format!(
                    "shape {shape:?} needs {bytes} bytes, the file has {have}"
                )));
            }
            // Decoding shares the file's buffer, so the distance is the offset in the file. An
            // empty tensor's bytes may point anywhere.
            let offset = (raw.as_ptr() as usize).checked_sub(self.bytes.as_ptr() as usize);
            match offset {
                Some(o) if bytes > 0 && o + bytes <= self.bytes.len() => {
                    Storage::Raw { offset: o as u64 }
                }
                _ => Storage::Fields(index),
            }
        } else {
            // Checks the length of the number fields against the shape, which bounds the copy by
            // what was decoded already.
            Tensor::decode(t).map_err(size)?;
            Storage::Fields(index)
        };
        Ok(Initializer { elem, shape, storage })
    }

    /// The bytes of an initializer as a literal, for tensors that import itself must read.
    ///
    /// # Errors
    /// P0211 where the file is missing, P0210 where it is too short.
    pub fn literal(&self, name: &str) -> Result<Tensor, Diagnostic> {
        let init = &self.initializers[name];
        let size = |e: String| Diagnostic::error("P0210", e).at(self.tensor_place(name));
        match &init.storage {
            Storage::Fields(i) => Tensor::decode(&self.graph.initializer[*i]).map_err(size),
            Storage::Raw { offset } => {
                let at = *offset as usize;
                let raw = &self.bytes[at..at + init.bytes()];
                Tensor::from_le_bytes(init.elem, init.shape.clone(), raw).map_err(size)
            }
            Storage::External { location, offset } => {
                let path = self.external_file(name, location, *offset, init.bytes() as u64)?;
                let raw = read_range(&path, *offset, init.bytes())
                    .map_err(|e| size(format!("cannot read `{location}`: {e}")))?;
                Tensor::from_le_bytes(init.elem, init.shape.clone(), &raw).map_err(size)
            }
        }
    }

    /// Whether the file that holds the values of `init` does not exist.
    pub fn lacks(&self, init: &Initializer) -> bool {
        let Storage::External { location, .. } = &init.storage else { return false };
        let folder = self.path.parent().unwrap_or(Path::new(""));
        check_location(location).is_ok() && !folder.join(location).exists()
    }

    /// The file that holds external data, checked to exist inside the model's folder and to be long
    /// enough.
    ///
    /// # Errors
    /// P0211 where it is missing, P0212 where it leaves the folder, P0210 where it is too short.
    pub fn external_file(
        &self,
        tensor: &str,
        location: &str,
        offset: u64,
        length: u64,
    ) -> Result<PathBuf, Diagnostic> {
        let place = || self.tensor_place(tensor);
        check_location(location).map_err(|d| d.at(place()))?;
        let folder = match self.path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let joined = folder.join(location);
        let missing = |e: std::io::Error| missing_weights(location, &joined, &e).at(place());
        let real = joined.canonicalize().map_err(missing)?;
        let root = folder.canonicalize().map_err(missing)?;
        if !real.starts_with(&root) {
            return Err(escapes(location).at(place()));
        }
        let meta = std::fs::metadata(&real).map_err(missing)?;
        if offset.checked_add(length).is_none_or(|end| end > meta.len()) || !meta.is_file() {
            return Err(Diagnostic::error(
                "P0210",
                format!(
                    "bytes {offset}..{offset}+{length} of `{location}` do not exist; it has {}",
                    meta.len()
                ),
            )
            .at(place()));
        }
        Ok(joined)
    }

    /// Checks names and puts the nodes in topological order, keeping the file's order where it is
    /// one.
    fn sort_nodes(&mut self) -> Result<()> {
        let mut maker: BTreeMap<&str, usize> = BTreeMap::new();
        let mut given: BTreeSet<&str> = BTreeSet::new();
        given.extend(self.graph.input.iter().filter_map(|v| v.name.as_deref()));
        given.extend(self.initializers.keys().map(String::as_str));
        for (i, node) in self.graph.node.iter().enumerate() {
            check_node(node).map_err(|d| d.at(self.node_place(i)))?;
            for out in node.output.iter().filter(|o| !o.is_empty()) {
                if given.contains(out.as_str()) || maker.insert(out, i).is_some() {
                    return Err(Diagnostic::error("P0204", format!("`{out}` is defined twice"))
                        .at(self.node_place(i))
                        .into());
                }
            }
        }
        let mut waiting = vec![0usize; self.graph.node.len()];
        let mut readers = vec![Vec::new(); self.graph.node.len()];
        for (i, node) in self.graph.node.iter().enumerate() {
            for x in node.input.iter().filter(|x| !x.is_empty()) {
                if let Some(&m) = maker.get(x.as_str()) {
                    waiting[i] += 1;
                    readers[m].push(i);
                } else if !given.contains(x.as_str()) {
                    return Err(Diagnostic::error(
                        "P0204",
                        format!("input `{x}` is not defined by a node, an input or an initializer"),
                    )
                    .at(self.node_place(i))
                    .into());
                }
            }
        }
        let mut ready: BTreeSet<usize> = (0..waiting.len()).filter(|&i| waiting[i] == 0).collect();
        let mut order = Vec::with_capacity(waiting.len());
        while let Some(i) = ready.pop_first() {
            order.push(i);
            for &r in &readers[i] {
                waiting[r] -= 1;
                if waiting[r] == 0 {
                    ready.insert(r);
                }
            }
        }
        if let Some(stuck) = (0..waiting.len()).find(|&i| waiting[i] > 0) {
            return Err(Diagnostic::error("P0204", "the graph has a cycle")
                .at(self.node_place(stuck))
                .help("this node waits, directly or through others, for its own result")
                .into());
        }
        let mut nodes: Vec<Option<NodeProto>> =
            std::mem::take(&mut self.graph.node).into_iter().map(Some).collect();
        self.graph.node =
            order.into_iter().map(|i| nodes[i].take().expect("each index once")).collect();
        Ok(())
    }
}

/// The message for a weight file that is not there.
pub fn missing_weights(location: &str, path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::error(
        "P0211",
        format!("the weights are in `{location}`, which cannot be read: {e}"),
    )
    .help(format!(
        "put the file at `{}`, name another with [weights] file = \"…\", or start from random \
             weights with [weights] init = \"default\"",
        path.display()
    ))
}

fn escapes(location: &str) -> Diagnostic {
    Diagnostic::error("P0212", format!("external data `{location}` leaves the model's folder"))
        .help("move the data beside the model and name it by a relative path without `..` or links")
}

fn check_location(location: &str) -> Result<(), Diagnostic> {
    let path = Path::new(location);
    let inside = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    // A backslash is a separator on some systems, so it is never part of a legal location.
    if location.is_empty() || !inside || location.contains(['\\', '\0']) {
        return Err(escapes(location));
    }
    Ok(())
}

/// Reads a range of a file that was checked to exist.
fn read_range(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut out = vec![0; length];
    file.read_exact(&mut out)?;
    Ok(out)
}

fn opset_of(model: &ModelProto) -> Result<i64, Diagnostic> {
    let mut version = None;
    for o in &model.opset_import {
        match o.domain.as_deref().unwrap_or_default() {
            "" | "ai.onnx" => version = o.version,
            // Harmless where no node uses it; nodes are checked one by one.
            _ => {}
        }
    }
    match version {
        Some(v) if OPSETS.contains(&v) => Ok(v),
        Some(v) => {
            Err(Diagnostic::error("P0203", format!("opset {v} is not supported")).help(format!(
                "opsets {} to {} are; export with opset_version = 18",
                OPSETS.start(),
                OPSETS.end()
            )))
        }
        None => Err(Diagnostic::error("P0203", "the model names no ONNX opset")
            .help("is this an ONNX model? It must import the default operator domain")),
    }
}

/// Refuses operators that are not ONNX's, and subgraphs other than those of `If` and `Loop`.
///
/// # Errors
/// P0205, P0215.
pub fn check_node(node: &NodeProto) -> Result<(), Diagnostic> {
    let op = node.op_type.as_deref().unwrap_or_default();
    let domain = node.domain.as_deref().unwrap_or_default();
    if !matches!(domain, "" | "ai.onnx") {
        return Err(Diagnostic::error(
            "P0205",
            format!("operator `{domain}::{op}` is not part of ONNX"),
        )
        .help("export without custom operators, or replace this one by standard ones"));
    }
    let subgraph = |a: &&AttributeProto| a.g.is_some() || !a.graphs.is_empty();
    let known = |a: &AttributeProto| {
        let name = a.name.as_deref().unwrap_or_default();
        let whose = matches!((op, name), ("If", "then_branch" | "else_branch") | ("Loop", "body"));
        whose && a.graphs.is_empty()
    };
    let other = |a: &&AttributeProto| subgraph(a) && !known(a);
    if let Some(a) = node.attribute.iter().find(other) {
        let name = a.name.as_deref().unwrap_or_default();
        return Err(Diagnostic::error("P0215", format!("`{op}` has a subgraph (`{name}`)"))
            .help("control flow is not supported; trace the model with fixed branches and loops"));
    }
    Ok(())
}
