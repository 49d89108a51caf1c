use super::{parse, print};
use crate::ir::{ConstData, Graph, Region, Result_, TensorType, ValueId, Var, VarInit, VarRole};
use crate::ops::{self, Op};
use precast_plan::{BinaryOp, DType, ReduceOp, UnaryOp};

const EVERY_OP: &str = include_str!("every_op.pir");

/// A small deterministic source of choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

fn same(a: &Graph, b: &Graph) {
    assert_eq!(a.name, b.name);
    assert_eq!(a.vars.iter().collect::<Vec<_>>(), b.vars.iter().collect::<Vec<_>>());
    assert_eq!(a.results, b.results);
    assert_eq!(a.updates, b.updates);
    assert_eq!(a.node_count(), b.node_count());
    for ((_, a_node), (_, b_node)) in a.nodes().zip(b.nodes()) {
        assert_eq!(a_node.op, b_node.op, "{}", a_node.name);
        assert_eq!(a_node.inputs, b_node.inputs);
        assert_eq!(a_node.outputs, b_node.outputs);
        assert_eq!(a_node.name, b_node.name);
        assert_eq!(a_node.region, b_node.region);
        for &v in &a_node.outputs {
            assert_eq!(a.ty(v), b.ty(v));
        }
    }
}

#[test]
fn every_operation_prints_and_parses() {
    let g = parse("every_op.pir", EVERY_OP).unwrap_or_else(|e| panic!("{e}"));
    let missing: Vec<_> =
        Op::NAMES.iter().filter(|n| !g.nodes().any(|(_, node)| node.op.name() == **n)).collect();
    assert!(missing.is_empty(), "add {missing:?} to every_op.pir");
    let text = print(&g);
    insta::assert_snapshot!("every_op", text);
    let again = parse("printed", &text).unwrap_or_else(|e| panic!("{e}"));
    same(&g, &again);
    assert_eq!(print(&again), text);
}

/// A random graph of elementwise, movement and reduction operations over odd names and literals.
fn random_graph(dice: &mut Dice) -> Graph {
    let names =
        ["a", "/layer1/Gemm", "with space", "quote\"d", "back\\slash", "é\n", "", "1st", "#"];
    let reals = [0.0, -0.0, 1.0, 1e-300, -2.5e10, f64::INFINITY, f64::NEG_INFINITY, 0.1, f64::NAN];
    let mut g = Graph::new(names[dice.roll(names.len())]);
    let mut values: Vec<ValueId> = vec![];
    let mut serial = 0;
    let mut name = |dice: &mut Dice| {
        serial += 1;
        format!("{}.{serial}", names[dice.roll(names.len())])
    };
    for _ in 0..3 + dice.roll(4) {
        let shape = [dice.roll(3) + 1, dice.roll(4)];
        let ty = TensorType::f32(shape);
        let name = name(dice);
        let init = match dice.roll(6) {
            0 => VarInit::Zeros,
            4 => VarInit::File {
                path: "w \"1\".safetensors".into(),
                offset: dice.roll(1 << 40) as u64,
                dtype: precast_plan::DType::Bf16,
            },
            1 => VarInit::Value(reals[dice.roll(reals.len() - 1)]),
            2 => VarInit::Weights(name.clone()),
            3 => VarInit::Uniform { bound: 0.1, stream: dice.roll(100) as u32 },
            _ => {
                let bits = |dice: &mut Dice| {
                    // Includes NaNs with payloads and subnormals.
                    f32::from_bits((dice.roll(1 << 31) as u32) << 1 | dice.roll(2) as u32)
                };
                let data: Vec<f32> = (0..ty.shape.elements()).map(|_| bits(dice)).collect();
                VarInit::Data(ConstData::from_f32(shape, &data))
            }
        };
        let var = ops::Var::new(&name, &ty);
        g.vars.insert(name.clone(), Var { ty, role: VarRole::Param, init });
        values.extend(g.try_add(var, &[], name, Region::Forward).unwrap());
    }
    let mut region = Region::Forward;
    for _ in 0..dice.roll(40) {
        if dice.roll(8) == 0 {
            region = [Region::Forward, Region::Backward, Region::Update][dice.roll(3)];
        }
        let (x, y) = (values[dice.roll(values.len())], values[dice.roll(values.len())]);
        let op: Op = match dice.roll(7) {
            0 => ops::Unary { f: UnaryOp::ALL[dice.roll(UnaryOp::ALL.len())] }.into(),
            1 => ops::Binary { f: BinaryOp::ALL[dice.roll(BinaryOp::ALL.len())] }.into(),
            2 => ops::Scale { by: crate::ir::Real(reals[dice.roll(reals.len() - 1)]) }.into(),
            3 => ops::Transpose { perm: vec![1, 0] }.into(),
            4 => ops::Reduce { f: ReduceOp::Sum, axes: vec![dice.roll(2)] }.into(),
            5 => ops::Const { data: ConstData::from_f32([9], &[reals[dice.roll(9)] as f32; 9]) }
                .into(),
            _ => ops::Cast {}.into(),
        };
        let operands: &[ValueId] = match &op {
            Op::Binary(_) => &[x, y],
            Op::Const(_) => &[],
            _ => &[x],
        };
        if let Ok(outputs) = g.try_add(op, operands, name(dice), region) {
            if g.ty(outputs[0]).is_real() && dice.roll(3) == 0 {
                let formats = [DType::F16, DType::Bf16, DType::F8e4m3];
                g.set_dtype(outputs[0], formats[dice.roll(3)]);
            }
            values.extend(outputs);
        }
    }
    for _ in 0..dice.roll(4) {
        let value = values[dice.roll(values.len())];
        g.results.push(Result_ { name: name(dice), value });
        g.updates.push(Result_ { name: name(dice), value });
    }
    g
}

#[test]
fn random_graphs_print_and_parse() {
    for seed in 0..300 {
        let g = random_graph(&mut Dice(seed));
        let text = print(&g);
        let again = parse("random", &text).unwrap_or_else(|e| panic!("seed {seed}\n{text}\n{e}"));
        same(&g, &again);
        assert_eq!(print(&again), text);
    }
}

#[test]
fn mutated_text_never_panics() {
    let canonical = print(&parse("every_op.pir", EVERY_OP).unwrap());
    let lines: Vec<&str> = canonical.lines().collect();
    let pieces: &[&str] = &[
        "%0",
        "%",
        "\"",
        "\\",
        "[",
        "]",
        "{",
        "}",
        "<",
        ">",
        "(",
        ")",
        ",",
        "=",
        ":",
        "@",
        "#",
        "\n",
        "f32[",
        "bf16",
        "-1",
        "0",
        "9999999999999",
        "99999999999999999999",
        "1e400",
        "nan",
        "-inf",
        "é",
        "\u{7}",
        "splat",
        "update",
        "shape=[4294967296,4294967296]",
        "graph g",
        "axis=7",
    ];
    let mut dice = Dice(99);
    let mut rejected = 0;
    for _ in 0..3000 {
        let mut text = canonical.clone();
        for _ in 0..=dice.roll(4) {
            let at =
                (0..=dice.roll(text.len() + 1)).rev().find(|&i| text.is_char_boundary(i)).unwrap();
            match dice.roll(4) {
                0 => text.insert_str(at, pieces[dice.roll(pieces.len())]),
                1 => text.truncate(at),
                2 => {
                    let line = lines[dice.roll(lines.len())];
                    text.insert_str(at, line);
                }
                _ => {
                    let end = (at..=text.len()).skip(1 + dice.roll(5));
                    let end = end.clone().find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
                    text.replace_range(at..end, pieces[dice.roll(pieces.len())]);
                }
            }
        }
        match parse("mutated", &text) {
            Ok(g) => {
                let printed = print(&g);
                let again = parse("printed", &printed).unwrap_or_else(|e| panic!("{printed}\n{e}"));
                assert_eq!(print(&again), printed);
            }
            Err(e) => {
                rejected += 1;
                assert!(!e.to_string().is_empty());
            }
        }
    }
    assert!(rejected > 1000, "{rejected}");
}

#[test]
fn all_errors_are_reported_at_their_place() {
    let text = r#"
graph demo
var w: f32[4,3] parm zeros
var v: f23[4] param zeros
var u: f32[4] param value("x")
var u: f32[2] buffer data(f32[2](1.0))
%early = const {data=f32[](1)}
forward:
  %x = input {name="x"} : f32[2,4]
  %a = matmull %x, %x
  %b = matmul %a, %x {fused=none}
  %c = matmul %x, %x {fused=none}
  %d = matmul %x, %x {fuse=none}
  %e = unary %x {f=exp} : f32[4,2]
  %x = unary %x {f=exp}
  %f = unary %hidden {f=exp}
  %g, %h = unary %x {f=exp}
  %i = const {data=f32[3]<00>}
  %j = iota {shape=[99999999,99999999], axis=0}
  %k = unary %x {f=exp} @ $
  %l = unary %k {f=exp} trailing
resutl loss = %x
update w %x
"#;
    let errors = parse("demo.pir", text).expect_err("the text is wrong").to_string();
    insta::assert_snapshot!("errors", errors);
}

#[test]
fn a_text_without_a_graph_is_an_error() {
    for text in ["", "# nothing\n", "forward:\n"] {
        let errors = parse("empty.pir", text).unwrap_err().to_string();
        assert!(errors.contains("a graph begins with `graph NAME`"), "{errors}");
    }
}
