//! Models made here, each wrong in one way, and operators that no fixture has.

use super::proto::*;
use super::*;
use crate::ir::verify::verify;
use crate::ir::{Shape, VarRole};
use crate::ops::Op;
use crate::reference::{self, Tensor};
use indexmap::IndexMap;
use prost::Message;
use prost::bytes::Bytes;

pub(super) fn node(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        name: Some(format!("n_{}", outputs[0])),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        attribute,
        ..NodeProto::default()
    }
}

pub(super) fn attr(name: &str) -> AttributeProto {
    AttributeProto { name: Some(name.into()), ..AttributeProto::default() }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), r#type: Some(2), ..attr(name) }
}

pub(super) fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim =
        dims.iter().map(|&d| DimensionProto { dim_value: Some(d), dim_param: None }).collect();
    let tensor =
        TensorTypeProto { elem_type: Some(elem::FLOAT), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { tensor_type: Some(tensor) }),
    }
}

pub(super) fn tensor(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(elem::FLOAT),
        raw_data: Some(data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()),
        ..TensorProto::default()
    }
}

pub(super) fn ints(name: &str, data: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![data.len() as i64],
        data_type: Some(elem::INT64),
        int64_data: data.to_vec(),
        ..TensorProto::default()
    }
}

fn external(name: &str, location: &str) -> TensorProto {
    let entry =
        |k: &str, v: &str| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
    TensorProto {
        name: Some(name.into()),
        dims: vec![2],
        data_type: Some(elem::FLOAT),
        data_location: Some(1),
        external_data: vec![entry("location", location)],
        ..TensorProto::default()
    }
}

/// `x` [2,3] → `y`.
pub(super) fn model(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(GraphProto {
            node: nodes,
            initializer,
            input: vec![value("x", &[2, 3])],
            output: vec![value("y", &[])],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

pub(super) fn load_in(folder: &Path, m: &ModelProto) -> Result<Imported> {
    let opts = ImportOptions { training: true, ..ImportOptions::default() };
    load_bytes(&folder.join("model.onnx"), m.encode_to_vec(), &opts)
}

pub(super) fn refused(m: ModelProto) -> String {
    let e = load_in(Path::new("."), &m).unwrap_err();
    e.to_string()
}

#[test]
fn faults_are_named_with_their_node() {
    let relu = || node("Relu", &["x"], &["y"], vec![]);
    let mut list = vec![
        refused(model(vec![node("Reluu", &["x"], &["y"], vec![])], vec![])),
        refused(model(vec![node("NonMaxSuppression", &["x"], &["y"], vec![])], vec![])),
        refused(model(vec![node("Relu", &["z"], &["y"], vec![])], vec![])),
        refused(model(vec![relu(), relu()], vec![])),
        refused(model(vec![node("Relu", &["x"], &["z"], vec![])], vec![])),
    ];
    let cycle =
        vec![node("Add", &["x", "b"], &["a"], vec![]), node("Relu", &["a"], &["b"], vec![])];
    list.push(refused(model(cycle, vec![])));
    let branch = AttributeProto { g: Some(Bytes::from_static(b"")), ..attr("then_branch") };
    list.push(refused(model(vec![node("If", &["x"], &["y"], vec![branch])], vec![])));
    let mut foreign = model(vec![relu()], vec![]);
    foreign.graph.as_mut().unwrap().node[0].domain = Some("com.microsoft".into());
    list.push(refused(foreign));
    let mut old = model(vec![relu()], vec![]);
    old.opset_import[0].version = Some(11);
    list.push(refused(old));
    let mut functions = model(vec![relu()], vec![]);
    functions.functions.push(FunctionProto { name: Some("f".into()), domain: None });
    list.push(refused(functions));
    // Sizes that no bytes back.
    let huge = TensorProto { dims: vec![1 << 40, 1 << 40], ..tensor("w", &[], &[]) };
    list.push(refused(model(vec![node("Add", &["x", "w"], &["y"], vec![])], vec![huge])));
    let empty = TensorProto { dims: vec![1 << 36], ..tensor("w", &[], &[]) };
    list.push(refused(model(vec![node("Add", &["x", "w"], &["y"], vec![])], vec![empty])));
    let fill = vec![node("ConstantOfShape", &["s"], &["y"], vec![])];
    list.push(refused(model(fill, vec![ints("s", &[1 << 20, 1 << 20])])));
    let conv = vec![node("Conv", &["x", "w"], &["y"], vec![])];
    list.push(refused(model(conv, vec![tensor("w", &[1], &[0.0])])));
    // A shape that depends on data.
    let cast = node("Cast", &["x"], &["s"], vec![int("to", 7)]);
    list.push(refused(model(vec![cast, node("Expand", &["x", "s"], &["y"], vec![])], vec![])));
    let add = || vec![node("Add", &["x", "w"], &["y"], vec![])];
    list.push(refused(model(add(), vec![tensor("w", &[2], &[0.0, 1.0])])));
    let strings = TensorProto { data_type: Some(elem::STRING), ..tensor("w", &[3], &[0.0; 3]) };
    list.push(refused(model(add(), vec![strings])));
    list.push(
        load_bytes(Path::new("m.onnx"), vec![], &ImportOptions::default()).unwrap_err().to_string(),
    );
    insta::assert_snapshot!("faults", list.join("\n\n"));
}

#[test]
fn two_outputs_of_one_name_are_an_error() {
    let mut m = model(vec![node("Relu", &["x"], &["y"], vec![])], vec![]);
    m.graph.as_mut().unwrap().output.push(value("y", &[]));
    let said = refused(m);
    assert!(said.contains("error[P0204]: two outputs of the model have this name"), "{said}");
}

/// What a converter does not look at has not been understood.
#[test]
fn attributes_operands_and_results_that_are_not_understood_are_errors() {
    for op in SUPPORTED {
        let nodes = vec![node(op, &["x", "x", "x"], &["y"], vec![int("of_the_future", 1)])];
        let e = load_in(Path::new("."), &model(nodes, vec![])).err();
        assert!(e.is_some(), "`{op}` ignores an attribute");
    }
    let mut list = vec![
        refused(model(vec![node("Relu", &["x"], &["y"], vec![int("slope", 1)])], vec![])),
        refused(model(vec![node("Relu", &["x", "x"], &["y"], vec![])], vec![])),
    ];
    let two = vec![node("Relu", &["x"], &["a", "b"], vec![]), node("Neg", &["b"], &["y"], vec![])];
    list.push(refused(model(two, vec![])));
    let mut empty = model(vec![node("Relu", &["x"], &["y"], vec![])], vec![]);
    empty.graph.as_mut().unwrap().input = vec![value("x", &[2, 0])];
    list.push(refused(empty));
    insta::assert_snapshot!("not_understood", list.join("\n\n"));
}

#[test]
fn external_data_stays_in_the_models_folder() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(outside.path().join("secret"), [0; 8]).unwrap();
    std::fs::write(folder.join("inside"), [0; 8]).unwrap();
    std::fs::write(folder.join("short"), [0; 7]).unwrap();
    let code = |location: &str| {
        let m = model(
            vec![node("Gather", &["w", "i"], &["y"], vec![])],
            vec![external("w", location), ints("i", &[0, 1])],
        );
        match load_in(&folder, &m) {
            Ok(_) => "imported",
            Err(e) => e.0[0].code,
        }
    };
    assert_eq!(code("inside"), "imported");
    assert_eq!(code("./inside"), "imported");
    assert_eq!(code("short"), "P0210");
    assert_eq!(code("absent"), "P0211");
    for location in ["../secret", "/etc/hostname", "sub/../../secret", "", "..\\secret", "a\0b"] {
        assert_eq!(code(location), "P0212", "{location:?}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path().join("secret"), folder.join("link")).unwrap();
        assert_eq!(code("link"), "P0212");
    }
}

/// Runs a model of one node on x = [[−2,−1,0],[½,1,3]].
fn run(nodes: Vec<NodeProto>, init: Vec<TensorProto>) -> Vec<f64> {
    let m = load_in(Path::new("."), &model(nodes, init)).unwrap_or_else(|e| panic!("{e}"));
    verify(&m.graph).unwrap();
    let x = Tensor::real(Shape::from([2, 3]), vec![-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]);
    let inputs = IndexMap::from([("x".to_string(), x)]);
    let got = reference::eval(&m.graph, &inputs, &IndexMap::new()).unwrap();
    got.results["out.y"].reals().to_vec()
}

#[test]
fn operators_mean_what_onnx_says() {
    let real = |name: &str, f: f32| AttributeProto { f: Some(f), r#type: Some(1), ..attr(name) };
    let one = |op: &str, a: Vec<AttributeProto>| run(vec![node(op, &["x"], &["y"], a)], vec![]);
    let near = |got: Vec<f64>, want: &[f64]| {
        assert_eq!(got.len(), want.len());
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() < 1e-6, "{got:?} is not {want:?}");
        }
    };
    near(one("LeakyRelu", vec![real("alpha", 0.1)]), &[-0.2, -0.1, 0.0, 0.5, 1.0, 3.0]);
    let e = |x: f64| x.exp() - 1.0;
    near(one("Elu", vec![]), &[e(-2.0), e(-1.0), 0.0, 0.5, 1.0, 3.0]);
    near(one("HardSigmoid", vec![]), &[0.1, 0.3, 0.5, 0.6, 0.7, 1.0]);
    near(one("HardSwish", vec![]), &[-1.0 / 3.0, -1.0 / 3.0, 0.0, 0.5 * 3.5 / 6.0, 4.0 / 6.0, 3.0]);
    let softplus: Vec<f64> = [-2.0f64, -1.0, 0.0, 0.5, 1.0, 3.0].map(|x| x.exp().ln_1p()).to_vec();
    near(one("Softplus", vec![]), &softplus);
    near(one("ReduceMean", vec![int("keepdims", 0)]), &[0.25]);
    let axes =
        |name: &str, v: &[i64]| AttributeProto { ints: v.to_vec(), r#type: Some(7), ..attr(name) };
    near(one("ReduceL2", vec![axes("axes", &[0])]), &[4.25f64.sqrt(), 2f64.sqrt(), 3.0]);
    let lse = |v: [f64; 3]| v.iter().map(|x| x.exp()).sum::<f64>().ln();
    near(
        one("ReduceLogSumExp", vec![axes("axes", &[-1])]),
        &[lse([-2.0, -1.0, 0.0]), lse([0.5, 1.0, 3.0])],
    );
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    near(
        one("Softmax", vec![int("axis", 0)]),
        &[sigmoid(-2.5), sigmoid(-2.0), sigmoid(-3.0), sigmoid(2.5), sigmoid(2.0), sigmoid(3.0)],
    );
    let scalar = |name: &str, x: f32| tensor(name, &[], &[x]);
    let clip = vec![node("Clip", &["x", "lo", "hi"], &["y"], vec![])];
    near(run(clip, vec![scalar("lo", -1.0), scalar("hi", 1.0)]), &[-1.0, -1.0, 0.0, 0.5, 1.0, 1.0]);
    let pow =
        |p: f32| run(vec![node("Pow", &["x", "val_0"], &["y"], vec![])], vec![scalar("val_0", p)]);
    near(pow(3.0), &[-8.0, -1.0, 0.0, 0.125, 1.0, 27.0]);
    let pad = vec![node("Pad", &["x", "p", "v"], &["y"], vec![])];
    near(
        run(pad, vec![ints("p", &[0, -1, 0, 1]), scalar("v", 9.0)]),
        &[-1.0, 0.0, 9.0, 1.0, 3.0, 9.0],
    );
    let gather = |a: i64| vec![node("Gather", &["x", "i"], &["y"], vec![int("axis", a)])];
    near(run(gather(1), vec![ints("i", &[2, -3])]), &[0.0, -2.0, 3.0, 0.5]);
    // [2,3] as [1,1,2,3]: averages of 2×2 windows, padding not counted.
    let pool = vec![
        node("Unsqueeze", &["x", "a"], &["u"], vec![]),
        node(
            "AveragePool",
            &["u"],
            &["y"],
            vec![axes("kernel_shape", &[2, 2]), axes("pads", &[0, 1, 0, 0])],
        ),
    ];
    near(run(pool, vec![ints("a", &[0, 1])]), &[-0.75, -0.375, 0.75]);
    let up = vec![
        node("Unsqueeze", &["x", "a"], &["u"], vec![]),
        node("Resize", &["u", "", "s"], &["y"], vec![]),
    ];
    near(
        run(up, vec![ints("a", &[0, 1]), tensor("s", &[4], &[1.0, 1.0, 1.0, 2.0])]),
        &[-2.0, -2.0, -1.0, -1.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 3.0, 3.0],
    );
}

#[test]
fn dropout_is_active_only_in_training() {
    let nodes = vec![node("Dropout", &["x", "p", "t"], &["y"], vec![])];
    let flag = TensorProto {
        name: Some("t".into()),
        data_type: Some(elem::BOOL),
        int32_data: vec![1],
        ..TensorProto::default()
    };
    let m = model(nodes, vec![tensor("p", &[], &[0.25]), flag]);
    let import = |training: bool| {
        let opts = ImportOptions { training, ..ImportOptions::default() };
        load_bytes(Path::new("m.onnx"), m.encode_to_vec(), &opts).unwrap().graph
    };
    let dropouts = |g: &Graph| g.nodes().filter(|(_, n)| matches!(n.op, Op::Dropout(_))).count();
    let g = import(true);
    verify(&g).unwrap();
    assert_eq!(dropouts(&g), 1);
    assert!(g.vars.values().all(|v| v.role == VarRole::Machine));
    assert_eq!(dropouts(&import(false)), 0);
}

/// A learnable temperature is trained; the 0.5 of a formula is not; what cannot be told is said.
#[test]
fn a_scalar_is_a_parameter_where_its_name_is_of_a_module() {
    let mul = |a: &str, b: &str, y: &str| node("Mul", &[a, b], &[y], vec![]);
    let nodes = vec![
        mul("x", "head.logit_scale", "a"),
        mul("a", "val_0", "b"),
        mul("b", "exp", "c"),
        node("Where", &["m", "c", "masked_bias"], &["d"], vec![]),
        node("Clip", &["d", "low"], &["y"], vec![]),
    ];
    let yes = TensorProto {
        name: Some("m".into()),
        data_type: Some(elem::BOOL),
        int32_data: vec![1],
        ..TensorProto::default()
    };
    let scalar = |name: &str, x: f32| tensor(name, &[], &[x]);
    let init = vec![
        scalar("head.logit_scale", 2.0),
        scalar("val_0", 0.5),
        scalar("exp", 4.0),
        scalar("masked_bias", -1e4),
        scalar("low", -20.0),
        yes,
    ];
    let m = load_in(Path::new("."), &model(nodes, init)).unwrap_or_else(|e| panic!("{e}"));
    verify(&m.graph).unwrap();
    assert_eq!(m.params, ["head.logit_scale"]);
    assert_eq!(m.graph.vars.len(), 1);
    assert!(m.graph.vars["head.logit_scale"].ty.shape.is_empty());
    let [warning] = &m.warnings[..] else { panic!("{:?}", m.warnings) };
    assert_eq!(warning.code, "P0226");
    assert!(warning.message.contains("`exp`"), "{warning}");
    let x = Tensor::real(Shape::from([2, 3]), vec![-8.0, -1.0, 0.0, 0.5, 1.0, 3.0]);
    let inputs = IndexMap::from([("x".to_string(), x)]);
    let scale = Tensor::real(Shape::new(&[]), vec![2.0]);
    let vars = IndexMap::from([("head.logit_scale".to_string(), scale)]);
    let got = reference::eval(&m.graph, &inputs, &vars).unwrap();
    assert_eq!(got.results["out.y"].reals(), [-20.0, -4.0, 0.0, 2.0, 4.0, 12.0]);
}

/// The lists of docs/EXPORTING.md are what import does.
#[test]
fn the_documented_operators_are_the_supported_ones() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/EXPORTING.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("## Operators").nth(1).unwrap();
    let lists: Vec<Vec<&str>> = section
        .split("\n\n")
        .filter(|p| p.starts_with('`') && p.ends_with('.') && !p.contains("Shapes"))
        .map(|p| p.split('`').skip(1).step_by(2).collect())
        .collect();
    let [whole, known] = &lists[..2] else { panic!("two lists") };
    let mut all: Vec<&str> = whole.iter().chain(known).copied().collect();
    all.sort_unstable();
    assert_eq!(all, SUPPORTED);
    for op in SUPPORTED {
        let m = model(vec![node(op, &["x", "x", "x"], &["y"], vec![])], vec![]);
        let text = load_in(Path::new("."), &m).err().map_or(String::new(), |e| e.to_string());
        let only_known = text.contains("is evaluated when compiling");
        assert_eq!(only_known, known.contains(op), "{op}: {text}");
    }
}

/// What an operator is asked for is done or refused, never passed over.
#[test]
fn attributes_and_operands_that_are_not_known_are_refused() {
    let heads = || vec![int("q_num_heads", 1), int("kv_num_heads", 1)];
    let wrong = |more: AttributeProto, operands: &[&str]| {
        let attributes = [heads(), vec![more]].concat();
        let split = node("Unsqueeze", &["x", "axes"], &["t"], vec![]);
        let attention = node("Attention", operands, &["y"], attributes);
        refused(model(vec![split, attention], vec![ints("axes", &[0])]))
    };
    let plain = ["t", "t", "t"];
    assert!(wrong(int("sliding", 1), &plain).contains("attribute `sliding` of `Attention`"));
    assert!(wrong(int("left_window_size", -2), &plain).contains("`left_window_size` is -2"));
    assert!(wrong(int("qk_matmul_output_mode", 4), &plain).contains("is 4"));
    let many = ["t", "t", "t", "", "", "", "", "t"];
    assert!(wrong(int("is_causal", 0), &many).contains("operand 7 of `Attention`"));
    let past = ["t", "t", "t", "", "t"];
    assert!(wrong(int("is_causal", 0), &past).contains("without the other"));
    let turned = node("RotaryEmbedding", &["x", "x", "x"], &["y"], vec![]);
    assert!(refused(model(vec![turned], vec![])).contains("neither three axes nor four"));
}

/// What a recurrence is asked for is done or refused; extents are looked at even of what is only zeros,
/// for it is there that torch.export shows a projection that it lost.
#[test]
fn recurrences_that_are_not_supported_are_refused() {
    let words = |list: &[&'static str]| AttributeProto {
        strings: list.iter().map(|w| Bytes::from_static(w.as_bytes())).collect(),
        r#type: Some(8),
        ..attr("activations")
    };
    let lstm = |attributes: Vec<AttributeProto>, state: i64| {
        let split = node("Unsqueeze", &["x", "axes"], &["t"], vec![]);
        let operands = ["t", "w", "r", "", "", "val_1", "val_2"];
        let cell =
            node("LSTM", &operands, &["y"], [vec![int("hidden_size", 2)], attributes].concat());
        let zeros = |name: &str, n: i64| tensor(name, &[1, 1, n], &vec![0.0; n as usize]);
        let weights = vec![
            tensor("w", &[1, 8, 3], &[0.1; 24]),
            tensor("r", &[1, 8, 2], &[0.1; 16]),
            zeros("val_1", 2),
            zeros("val_2", state),
            ints("axes", &[1]),
        ];
        model(vec![split, cell], weights)
    };
    assert!(load_in(Path::new("."), &lstm(vec![], 2)).is_ok());
    assert!(refused(lstm(vec![], 4)).contains("`initial_c` is [1, 1, 4], not [1, 1, 2]"));
    let clip = AttributeProto { f: Some(3.0), r#type: Some(1), ..attr("clip") };
    assert!(refused(lstm(vec![clip], 2)).contains("`clip`"));
    assert!(refused(lstm(vec![int("input_forget", 1)], 2)).contains("`input_forget`"));
    let hard = words(&["HardSigmoid", "Tanh", "Tanh"]);
    assert!(refused(lstm(vec![hard], 2)).contains("\"HardSigmoid\""));
    assert!(refused(lstm(vec![words(&["Tanh"])], 2)).contains("1 entries, not 3"));
}

/// `mean` and `std` of an input, sinusoids in whatever format and shape, and no one else, are buffers
/// without a name that says so.
#[test]
fn what_normalises_an_input_and_sinusoids_are_no_parameters() {
    let two = |op: &str, a: &str, b: &str, y: &str| node(op, &[a, b], &[y], vec![]);
    let waves: Vec<f32> = (0..64)
        .map(|i| {
            let (row, column) = (f64::from(i / 4), i % 4);
            let angle = row / 10000f64.powf(f64::from(column / 2) / 2.0);
            (if column % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
        })
        .collect();
    let trained: Vec<f32> =
        waves.iter().enumerate().map(|(i, x)| x + 0.1 * (i % 3) as f32).collect();
    let bits = waves.iter().map(|x| i32::from(half::bf16::from_f32(*x).to_bits())).collect();
    let rounded = TensorProto {
        name: Some("rounded".into()),
        dims: vec![16, 1, 4],
        data_type: Some(elem::BFLOAT16),
        int32_data: bits,
        ..TensorProto::default()
    };
    let nodes = vec![
        two("Sub", "x", "mean", "a"),
        node("Unsqueeze", &["std", "first"], &["d"], vec![]),
        two("Div", "a", "d", "b"),
        two("Mul", "b", "gain", "c"),
        two("Add", "c", "norm.mean", "e"),
        two("Gather", "waves", "id", "p"),
        two("Gather", "rounded", "id", "q"),
        two("Gather", "trained", "id", "r"),
        node("Concat", &["p", "r"], &["s"], vec![int("axis", 0)]),
        node("ReduceSum", &["s"], &["t"], vec![]),
        node("ReduceSum", &["q"], &["u"], vec![]),
        two("Add", "t", "u", "v"),
        two("MatMul", "e", "w", "f"),
        two("Add", "f", "late.mean", "g"),
        two("Add", "g", "v", "y"),
    ];
    let init = vec![
        tensor("mean", &[3], &[1.0, 2.0, 3.0]),
        tensor("std", &[3], &[1.0, 2.0, 4.0]),
        tensor("gain", &[3], &[1.0; 3]),
        tensor("norm.mean", &[3], &[1.0; 3]),
        tensor("w", &[3, 3], &[1.0; 9]),
        tensor("late.mean", &[3], &[1.0; 3]),
        tensor("waves", &[16, 4], &waves),
        rounded,
        tensor("trained", &[16, 4], &trained),
        ints("first", &[0]),
        ints("id", &[3]),
    ];
    let m = load_in(Path::new("."), &model(nodes, init)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(m.params, ["gain", "w", "late.mean", "trained"]);
    assert_eq!(m.buffers, ["mean", "std", "norm.mean", "waves", "rounded"]);
    let said = m.warnings.iter().map(|w| format!("{} {}\n", w.code, w.message)).collect::<String>();
    insta::assert_snapshot!(said, @r"
    P0229 not trained, since their names are those of buffers: `mean`, `std`, `norm.mean`
    P0229 not trained, since they are sinusoids: `waves`, `rounded`
    P0230 trained, though their names may be those of buffers: `late.mean`
    ");
}

/// The second row of `x`, resized; values of ONNX's reference implementation (1.20).
#[test]
fn resizing_knows_every_rule() {
    let text = |name: &str, s: &str| AttributeProto {
        s: Some(Bytes::copy_from_slice(s.as_bytes())),
        r#type: Some(3),
        ..attr(name)
    };
    let x = [-2.0, -1.0, 0.0, 0.5, 1.0, 3.0];
    let check = |attributes: Vec<AttributeProto>, want: &[f64]| {
        let said = format!("{attributes:?}");
        let roi = tensor("r", &[4], &[0.0, 0.2, 1.0, 1.2]);
        let sizes = ints("s", &[2, want.len() as i64]);
        let nodes = vec![node("Resize", &["x", "r", "", "s"], &["y"], attributes)];
        let m = model(nodes, vec![roi, sizes]);
        let m = load_in(Path::new("."), &m).unwrap_or_else(|e| panic!("{said}: {e}"));
        verify(&m.graph).unwrap();
        let inputs = IndexMap::from([("x".to_string(), Tensor::real(Shape::from([2, 3]), x))]);
        let got = reference::eval(&m.graph, &inputs, &IndexMap::new()).unwrap();
        let got = &got.results["out.y"].reals()[want.len()..];
        let off = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-5 && got.len() == want.len(), "{said}: {got:?}, not {want:?}");
    };
    let rules: &[(&str, &str, &str, &[f64])] = &[
        ("nearest", "half_pixel", "round_prefer_floor", &[0.5, 0.5, 1.0, 3.0, 3.0]),
        ("nearest", "align_corners", "round_prefer_floor", &[0.5, 0.5, 1.0, 1.0, 3.0]),
        ("nearest", "asymmetric", "round_prefer_floor", &[0.5, 1.0, 1.0, 3.0, 3.0]),
        ("nearest", "half_pixel", "round_prefer_ceil", &[0.5, 0.5, 1.0, 3.0, 3.0]),
        ("nearest", "align_corners", "round_prefer_ceil", &[0.5, 1.0, 1.0, 3.0, 3.0]),
        ("nearest", "asymmetric", "round_prefer_ceil", &[0.5, 1.0, 1.0, 3.0, 3.0]),
        ("nearest", "half_pixel", "floor", &[0.5, 0.5, 1.0, 1.0, 3.0]),
        ("nearest", "align_corners", "floor", &[0.5, 0.5, 1.0, 1.0, 3.0]),
        ("nearest", "asymmetric", "floor", &[0.5, 0.5, 1.0, 1.0, 3.0]),
        ("nearest", "half_pixel", "ceil", &[0.5, 1.0, 1.0, 3.0, 3.0]),
        ("nearest", "align_corners", "ceil", &[0.5, 1.0, 1.0, 3.0, 3.0]),
        ("nearest", "asymmetric", "ceil", &[0.5, 1.0, 3.0, 3.0, 3.0]),
        ("nearest", "half_pixel", "ceil", &[0.5, 1.0, 1.0, 3.0, 3.0, 3.0]),
        ("nearest", "half_pixel", "floor", &[0.5, 1.0]),
        ("linear", "half_pixel", "floor", &[0.5, 0.7, 1.0, 2.2, 3.0]),
        ("linear", "half_pixel_symmetric", "floor", &[0.5, 0.7, 1.0, 2.2, 3.0]),
        ("linear", "pytorch_half_pixel", "floor", &[0.5, 0.7, 1.0, 2.2, 3.0]),
        ("linear", "align_corners", "floor", &[0.5, 0.75, 1.0, 2.0, 3.0]),
        ("linear", "asymmetric", "floor", &[0.5, 0.8, 1.4, 2.6, 3.0]),
        ("linear", "half_pixel", "floor", &[0.625, 2.5]),
        ("cubic", "half_pixel", "floor", &[0.452, 0.549999, 1.0, 2.26, 3.192001]),
        ("cubic", "half_pixel_symmetric", "floor", &[0.452, 0.549999, 1.0, 2.26, 3.192001]),
        ("cubic", "pytorch_half_pixel", "floor", &[0.452, 0.549999, 1.0, 2.26, 3.192001]),
        ("cubic", "align_corners", "floor", &[0.5, 0.5625, 1.0, 2.046875, 3.0]),
        ("cubic", "asymmetric", "floor", &[0.5, 0.59, 1.400001, 2.66, 3.215999]),
        ("cubic", "half_pixel", "floor", &[0.542969, 2.564453]),
        ("linear", "tf_crop_and_resize", "floor", &[0.7, 1.133333, 2.466667, 9.0]),
    ];
    for (mode, coordinates, nearest, want) in rules {
        let real = AttributeProto { f: Some(9.0), r#type: Some(1), ..attr("extrapolation_value") };
        let list = vec![
            text("mode", mode),
            text("coordinate_transformation_mode", coordinates),
            text("nearest_mode", nearest),
            real,
        ];
        check(list, want);
    }
    let flag = |mode: &str, name: &str| vec![text("mode", mode), int(name, 1)];
    check(flag("cubic", "exclude_outside"), &[0.538869, 2.606007]);
    check(flag("linear", "antialias"), &[0.666667, 2.333333]);
    check(flag("cubic", "antialias"), &[0.524307, 2.381943]);
    check(flag("linear", "antialias"), &[0.5, 0.7, 1.0, 2.2, 3.0]);
}

/// Attributes that an operand makes idle are understood: exporters write them all the same.
#[test]
fn attributes_without_effect_are_no_fault() {
    let nodes = vec![
        node("Split", &["x"], &["a", "b", "c"], vec![int("axis", 1), int("num_outputs", 3)]),
        node("SplitToSequence", &["x", "two"], &["s"], vec![int("axis", 1), int("keepdims", 1)]),
        node("SequenceAt", &["s", "zero"], &["d"], vec![]),
        node("Concat", &["a", "b", "c", "d"], &["e"], vec![int("axis", 1)]),
        node(
            "ReduceMean",
            &["e", "first"],
            &["y"],
            vec![int("keepdims", 0), int("noop_with_empty_axes", 0)],
        ),
    ];
    let scalar = |name: &str, i: i64| TensorProto { dims: vec![], ..ints(name, &[i]) };
    let init = vec![scalar("two", 2), scalar("zero", 0), ints("first", &[1])];
    let mut m = model(nodes, init);
    m.opset_import[0].version = Some(18);
    let m = load_in(Path::new("."), &m).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(m.graph.ty(m.graph.result("out.y").unwrap()).shape[..], [2]);
}
