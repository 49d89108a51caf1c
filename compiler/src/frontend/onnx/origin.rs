//! What an exporter wrote beside the graph: what initializers were in the module, and which calls
//! of PyTorch nodes stand for.
//!
//! `torch.onnx.export(dynamo=True)` leaves the signature of the exported program on the graph, a
//! mark on every initializer's value, and the call, the modules and the source of every node
//! (`pkg.torch.…` in `metadata_props`; seen in files of PyTorch 2.5 to 2.15). The TorchScript
//! exporter writes none of it; its node names hold the path of modules. All of it is read as text
//! that may be missing or of another form, which then says nothing.

use super::proto::{NodeProto, StringStringEntryProto};
use super::source::Source;
use std::collections::{BTreeMap, BTreeSet};

/// What an initializer was before the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Parameter,
    /// A buffer that is part of the module's state.
    Buffer,
    /// A buffer that is not, or a tensor that is a constant of the program.
    Constant,
    /// What the exporter's optimizer computed from these values.
    Computed(Vec<String>),
}

const SIGNATURE: &str = "pkg.torch.export.ExportedProgram.graph_signature";
const KIND: &str = "pkg.torch.export.graph_signature.InputSpec.kind";
const PERSISTENT: &str = "pkg.torch.export.graph_signature.InputSpec.persistent";
const FOLDED: &str = "pkg.onnxscript.optimizer.folded_from";
const CALL: &str = "pkg.torch.onnx.fx_node";
const SCOPES: &str = "pkg.torch.onnx.name_scopes";
const CLASSES: &str = "pkg.torch.onnx.class_hierarchy";
const TRACE: &str = "pkg.torch.onnx.stack_trace";

fn property<'a>(props: &'a [StringStringEntryProto], key: &str) -> Option<&'a str> {
    props.iter().find(|p| p.key.as_deref() == Some(key))?.value.as_deref()
}

fn of_kind(kind: &str, saved: bool) -> Option<Origin> {
    match kind {
        "PARAMETER" => Some(Origin::Parameter),
        "BUFFER" if saved => Some(Origin::Buffer),
        "BUFFER" | "CONSTANT_TENSOR" => Some(Origin::Constant),
        _ => None,
    }
}

/// The origins that the file states, by names of values; names that are no initializers of the file
/// any more are among them.
pub fn origins(src: &Source) -> BTreeMap<String, Origin> {
    let mut out = BTreeMap::new();
    let signature = property(&src.graph.metadata_props, SIGNATURE).unwrap_or_default();
    let inputs = signature.split("# outputs").next().unwrap_or_default();
    for line in inputs.lines() {
        // `p_fc_weight: PARAMETER target='fc.weight'`
        let Some((_, rest)) = line.split_once(": ") else { continue };
        let kind = rest.split_whitespace().next().unwrap_or_default();
        let target = rest.split_once("target='").and_then(|(_, t)| t.split('\'').next());
        let saved = !rest.contains("persistent=False");
        if let (Some(origin), Some(target)) = (of_kind(kind, saved), target) {
            out.insert(target.to_string(), origin);
        }
    }
    for v in &src.graph.value_info {
        let Some(name) = v.name.as_ref() else { continue };
        if let Some(from) = property(&v.metadata_props, FOLDED) {
            out.insert(name.clone(), Origin::Computed(strings(from)));
            continue;
        }
        let saved = property(&v.metadata_props, PERSISTENT) != Some("False");
        let kind = property(&v.metadata_props, KIND);
        if let Some(origin) = kind.and_then(|k| of_kind(k, saved)) {
            out.insert(name.clone(), origin);
        }
    }
    out
}

/// The parameters that a value was computed from, directly or by way of other computed values.
pub fn parameters_of<'a>(origins: &'a BTreeMap<String, Origin>, name: &'a str) -> Vec<&'a str> {
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    let mut work = vec![name];
    while let Some(name) = work.pop() {
        match origins.get(name) {
            Some(Origin::Parameter) => {
                found.insert(name);
            }
            Some(Origin::Computed(from)) if seen.insert(name) => {
                work.extend(from.iter().map(String::as_str));
            }
            _ => {}
        }
    }
    found.into_iter().collect()
}

/// The strings of a list as Python prints it.
fn strings(list: &str) -> Vec<String> {
    list.split(['\'', '"']).skip(1).step_by(2).map(str::to_string).collect()
}

/// A call of PyTorch's that a node is, or is a part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// `aten.embedding.default`
    pub target: &'a str,
    /// Positional arguments as they are written; `%name` for a value.
    pub args: Vec<&'a str>,
    /// Keyword arguments likewise.
    pub named: Vec<(&'a str, &'a str)>,
}

impl<'a> Call<'a> {
    /// An argument as it is written, given by its place or by its name; `None` where it has its default.
    pub fn arg(&self, at: usize, name: &str) -> Option<&'a str> {
        let named = || self.named.iter().find(|(n, _)| *n == name).map(|(_, x)| *x);
        self.args.get(at).copied().or_else(named)
    }

    /// Whether it is a call of this operator, whatever its overload.
    pub fn is(&self, operator: &str) -> bool {
        self.target
            .strip_prefix(operator)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// What commas part up to the bracket that closes the list, and what is behind that.
fn listed(text: &str) -> (Vec<&str>, &str) {
    let mut found = Vec::new();
    let (mut depth, mut from, mut rest) = (0i32, 0, "");
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => {
                found.push(text[from..at].trim());
                rest = &text[at + 1..];
                break;
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|x| !x.is_empty());
    (found, rest)
}

/// The call that a node came from, where the file says.
pub fn call(node: &NodeProto) -> Option<Call<'_>> {
    let text = property(&node.metadata_props, CALL)?;
    let (_, rest) = text.split_once("[target=")?;
    let (target, rest) = rest.split_once(']')?;
    let (_, rest) = rest.split_once("args = (")?;
    let (args, rest) = listed(rest);
    let named = rest.split_once("kwargs = {").map(|(_, rest)| listed(rest).0).unwrap_or_default();
    let named = named.iter().filter_map(|x| x.split_once(": ")).collect();
    Some(Call { target: target.strip_prefix("torch.ops.").unwrap_or(target), args, named })
}

/// Whether the file is of `torch.onnx.export(dynamo=True)`.
pub fn is_program(src: &Source) -> bool {
    // Tools that change a file may drop the notes; the names are left.
    let named = |n: &NodeProto| n.name.as_deref().is_some_and(|n| n.starts_with("node_"));
    property(&src.graph.metadata_props, SIGNATURE).is_some()
        || src.graph.node.iter().any(|n| call(n).is_some() || named(n))
}

/// Whether the node is a `detach()`.
pub fn is_detach(node: &NodeProto) -> bool {
    if node.op_type.as_deref() != Some("Identity") {
        return false;
    }
    match call(node) {
        Some(call) => call.target.starts_with("aten.detach"),
        None => node.name.as_deref().and_then(|n| n.strip_prefix("node_")).is_some_and(is_detached),
    }
}

/// Whether a value's name is one that the exporter gives to what `detach()` returns.
fn is_detached(name: &str) -> bool {
    name.strip_prefix("detach").is_some_and(|rest| {
        rest.strip_prefix('_').unwrap_or(rest).bytes().all(|b| b.is_ascii_digit())
    })
}

/// The row of its table that an embedding never trains.
pub fn padding_row(node: &NodeProto) -> Option<i64> {
    let call = call(node).filter(|c| c.target == "aten.embedding.default")?;
    call.args.get(2)?.parse().ok().filter(|row| *row >= 0)
}

/// Whether an embedding divides the gradient of a row by how often the row was looked up.
pub fn is_by_frequency(node: &NodeProto) -> bool {
    let call = call(node).filter(|c| c.target == "aten.embedding.default");
    call.and_then(|c| c.arg(3, "scale_grad_by_freq")) == Some("True")
}

/// Values that took the place of detached ones: operands of a node whose call read `%detach`, where
/// no node makes such a value. Pairs of the node's index and the operand.
pub fn lost_detaches(src: &Source) -> Vec<(usize, String)> {
    let made: BTreeSet<&str> =
        src.graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let mut found = Vec::new();
    for (i, node) in src.graph.node.iter().enumerate() {
        let Some(call) = call(node) else { continue };
        let names: Vec<&str> = call.args.iter().filter_map(|a| a.strip_prefix('%')).collect();
        if !names.iter().any(|n| is_detached(n) && !made.contains(n)) {
            continue;
        }
        // Parameters have other names in the program than in the file.
        let stranger = |x: &&String| {
            !x.is_empty()
                && !names.contains(&x.as_str())
                && made.contains(x.as_str())
                && !x.starts_with("val_")
        };
        found.extend(node.input.iter().filter(stranger).map(|x| (i, x.clone())));
    }
    found
}

/// Whether the node was inside a region that PyTorch exports as a program of its own, as it does
/// `torch.no_grad()` and `torch.autocast`.
pub fn is_apart(node: &NodeProto) -> bool {
    property(&node.metadata_props, TRACE).is_some_and(|t| t.contains("<eval_with_key>"))
}

/// Whether the node stands for a batch normalisation without being one.
pub fn is_folded_batch_norm(node: &NodeProto) -> bool {
    let op = node.op_type.as_deref().unwrap_or_default();
    let product = matches!(op, "Conv" | "ConvTranspose" | "Gemm" | "MatMul");
    let class = || property(&node.metadata_props, CLASSES).unwrap_or_default();
    product
        && (call(node).is_some_and(|c| c.target.contains("batch_norm"))
            || class().contains("modules.batchnorm."))
}

/// The module that a node is in, as parameters name it: `encoder.layer.0.norm`; empty for the model
/// itself. `None` where the file does not say.
pub fn module_of(node: &NodeProto) -> Option<String> {
    if let Some(scopes) = property(&node.metadata_props, SCOPES) {
        // The whole path at every level, and the call at the end.
        let scopes = strings(scopes);
        return scopes.len().checked_sub(2).map(|i| scopes[i].clone());
    }
    // `/encoder/encoder.layer.0/norm/LayerNormalization`: a module of a list has the list's name too.
    let path = node.name.as_deref()?.strip_prefix('/')?;
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    let mut out = String::new();
    let mut last = "";
    for part in parts {
        let own = part.strip_prefix(last).filter(|_| !last.is_empty());
        match own.and_then(|p| p.strip_prefix('.')) {
            Some(own) => out = format!("{out}.{own}"),
            None if out.is_empty() => out = part.into(),
            None => out = format!("{out}.{part}"),
        }
        last = part;
    }
    Some(out)
}

/// Whether a node in `module` reads a parameter of that very module. A module that is called again
/// may have a number behind its name.
pub fn is_at_home(node: &NodeProto, parameter: &str) -> bool {
    let Some(module) = module_of(node) else { return false };
    let home = parameter.rsplit_once('.').map_or("", |(home, _)| home);
    let number = |a: &str, b: &str| {
        a.strip_prefix(b)
            .and_then(|r| r.strip_prefix('_'))
            .is_some_and(|r| !r.is_empty() && r.bytes().all(|b| b.is_ascii_digit()))
    };
    // A path of the TorchScript exporter lacks modules whose own `forward` was not called.
    let same = |x: &str, y: &str| x == y || number(x, y);
    let mut rest = home.split('.');
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
    same(&last(&module), &last(home)) && module.split('.').all(|x| rest.any(|y| same(x, y)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op: &str, name: &str, props: &[(&str, &str)]) -> NodeProto {
        let props = props.iter().map(|(k, v)| StringStringEntryProto {
            key: Some((*k).into()),
            value: Some((*v).into()),
        });
        NodeProto {
            op_type: Some(op.into()),
            name: Some(name.into()),
            metadata_props: props.collect(),
            ..NodeProto::default()
        }
    }

    #[test]
    fn calls_are_read_as_pytorch_prints_them() {
        let text = "%embedding : [num_users=1] = call_function[target=torch.ops.aten.embedding\
                    .default](args = (%p_e_weight, %x, 0), kwargs = {})";
        let n = node("Gather", "node_embedding", &[(CALL, text)]);
        let call = call(&n).unwrap();
        assert_eq!(
            (call.target, &call.args[..]),
            ("aten.embedding.default", &["%p_e_weight", "%x", "0"][..])
        );
        assert_eq!(padding_row(&n), Some(0));
        let none = text.replace(", 0)", ")");
        assert_eq!(padding_row(&node("Gather", "g", &[(CALL, &none)])), None);
        let none = text.replace(", 0)", ", -1)");
        assert_eq!(padding_row(&node("Gather", "g", &[(CALL, &none)])), None);
        let nested = "%a : [num_users=1] = call_function[target=torch.ops.aten.mean.dim](args = (%b, [1, 2]), kwargs = {dtype: torch.float32, keepdim: True})";
        let n = node("ReduceMean", "m", &[(CALL, nested)]);
        let call = super::call(&n).unwrap();
        assert_eq!(call.args, ["%b", "[1, 2]"]);
        assert_eq!(call.named, [("dtype", "torch.float32"), ("keepdim", "True")]);
        assert_eq!((call.arg(1, "dim"), call.arg(2, "keepdim")), (Some("[1, 2]"), Some("True")));
        assert!(call.is("aten.mean") && call.is("aten.mean.dim") && !call.is("aten.me"));
        for broken in ["", "%a", "[target=x](args = (", "[target=](args = ()"] {
            let n = node("Gather", "g", &[(CALL, broken)]);
            assert!(super::call(&n).is_none_or(|c| c.args.is_empty()), "{broken}");
        }
    }

    #[test]
    fn a_detach_is_known_by_its_call_or_name() {
        let call =
            |t: &str| format!("%d : [] = call_function[target={t}](args = (%s,), kwargs = {{}})");
        let detach = call("torch.ops.aten.detach.default");
        assert!(is_detach(&node("Identity", "n", &[(CALL, &detach)])));
        assert!(!is_detach(&node(
            "Identity",
            "node_detach",
            &[(CALL, &call("torch.ops.aten.alias.default"))]
        )));
        assert!(is_detach(&node("Identity", "node_detach_12", &[])));
        assert!(!is_detach(&node("Identity", "node_detached", &[])));
        assert!(!is_detach(&node("Neg", "node_detach", &[])));
    }

    #[test]
    fn paths_of_modules_are_those_of_parameters() {
        let home = |name: &str, p: &str| is_at_home(&node("LayerNormalization", name, &[]), p);
        assert!(home("/encoder/layers.0/norm/LayerNormalization", "encoder.layers.0.norm.weight"));
        assert!(home("/layer1/layer1.0/bn/BatchNormalization", "layer1.0.bn.weight"));
        assert!(home("/group/norm_1/LayerNormalization", "group.norm.weight"));
        assert!(home("/LayerNormalization", "scale"));
        assert!(home(
            "/decoder/layers.1/norm/LayerNormalization",
            "model.decoder.layers.1.norm.weight"
        ));
        assert!(!home("/decoder/layers.1/norm/LayerNormalization", "decoder.layers.0.norm.weight"));
        assert!(!home("/norm_2/LayerNormalization", "norm_1.weight"));
        assert!(!home("LayerNormalization_3", "norm_1.weight"));
        let scopes = [(SCOPES, "['', 'enc', 'enc.norm', 'layer_norm']")];
        assert!(is_at_home(
            &node("LayerNormalization", "node_layer_norm", &scopes),
            "enc.norm.weight"
        ));
        assert!(!is_at_home(&node("LayerNormalization", "n", &scopes), "enc.other.weight"));
    }
}
