//! Models of every shape that a pass may take too long over, as textual IR of a given number of
//! operations, for the bench of compile time and for the tests that count work.

use std::fmt::Write;

/// A family of models.
pub struct Shape {
    pub name: &'static str,
    /// The model of about so many operations.
    pub model: fn(usize) -> String,
}

/// Every shape.
pub const SHAPES: &[Shape] = &[
    Shape { name: "chain", model: chain },
    Shape { name: "chain-of-sums", model: chain_of_sums },
    Shape { name: "scalars", model: scalars },
    Shape { name: "fan-out", model: fan_out },
    Shape { name: "fan-of-reductions", model: fan_of_reductions },
    Shape { name: "fan-in", model: fan_in },
    Shape { name: "reductions", model: reductions },
    Shape { name: "softmaxes", model: softmaxes },
    Shape { name: "normalisations", model: normalisations },
    Shape { name: "concatenation", model: concatenation },
    Shape { name: "nested-concatenations", model: nested_concatenations },
    Shape { name: "slices", model: slices },
    Shape { name: "movements", model: movements },
    Shape { name: "residual-ladder", model: residual_ladder },
    Shape { name: "skip-ladder", model: skip_ladder },
    Shape { name: "dense-ladder", model: dense_ladder },
    Shape { name: "parameters", model: parameters },
    Shape { name: "gathers", model: gathers },
    Shape { name: "outputs", model: outputs },
    Shape { name: "products", model: products },
    Shape { name: "parallel-products", model: parallel_products },
    Shape { name: "casts", model: casts },
    Shape { name: "convolutions", model: convolutions },
];

/// The shape of a name.
pub fn shape(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|s| s.name == name)
}

/// A recipe that trains a model of this file.
pub fn recipe(model: &std::path::Path, policy: &str, device: &str) -> String {
    format!(
        "model = {model:?}\n[loss]\nkind = \"output\"\nprediction = \"y\"\n[optimizer]\n\
         kind = \"adamw\"\nlr = 1e-3\n[precision]\npolicy = \"{policy}\"\n[train]\nsteps = 1\n\
         [target]\ndevice = \"{device}\"\n"
    )
}

const ROWS: usize = 32;
const COLUMNS: usize = 64;

/// A text as it grows.
#[derive(Default)]
struct Text {
    vars: String,
    code: String,
    results: String,
    operations: usize,
}

impl Text {
    /// With an input `%x` of [`ROWS`] by [`COLUMNS`] and what a parameter makes of it.
    fn begin() -> (Text, String) {
        let mut t = Text::default();
        let x = t.input("x", &format!("f32[{ROWS},{COLUMNS}]"));
        let w = t.param("w", &format!("{ROWS},{COLUMNS}"));
        let first = t.op(&format!("binary {x}, {w} {{f=mul}}"));
        (t, first)
    }

    fn input(&mut self, name: &str, ty: &str) -> String {
        writeln!(self.code, "  %{name} = input {{name=\"{name}\"}} : {ty} @{name}")
            .expect("memory");
        format!("%{name}")
    }

    fn param(&mut self, name: &str, dims: &str) -> String {
        let stream = self.operations;
        writeln!(self.vars, "var {name}: f32[{dims}] param uniform(0.1,{stream})").expect("memory");
        writeln!(self.code, "  %{name} = var {{name=\"{name}\"}} : f32[{dims}] @{name}")
            .expect("memory");
        format!("%{name}")
    }

    /// One operation with one result.
    fn op(&mut self, what: &str) -> String {
        let i = self.operations;
        self.operations += 1;
        writeln!(self.code, "  %n{i} = {what} @n{i}").expect("memory");
        format!("%n{i}")
    }

    fn result(&mut self, name: &str, value: &str) {
        writeln!(self.results, "result out.{name} = {value}").expect("memory");
    }

    fn end(mut self, y: &str) -> String {
        self.result("y", y);
        format!("graph g\n\n{}\nforward:\n{}\n{}", self.vars, self.code, self.results)
    }
}

const CURVES: [&str; 3] = ["tanh", "sigmoid", "sin"];

/// One elementwise operation after the other.
fn chain(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 1..n {
        x = t.op(&format!("unary {x} {{f={}}}", CURVES[i % CURVES.len()]));
    }
    t.end(&x)
}

/// Sums and products, one after the other, of a value and of what another input makes.
fn chain_of_sums(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    let first = x.clone();
    for i in 1..n {
        let f = if i % 2 == 0 { "mul" } else { "add" };
        x = t.op(&format!("binary {x}, {first} {{f={f}}}"));
    }
    t.end(&x)
}

/// A chain over a single element.
fn scalars(n: usize) -> String {
    let mut t = Text::default();
    let mut x = t.param("w", "");
    let y = t.input("x", "f32[]");
    x = t.op(&format!("binary {x}, {y} {{f=mul}}"));
    for i in 1..n {
        x = match i % 2 {
            0 => t.op(&format!("binary {x}, {y} {{f=add}}")),
            _ => t.op(&format!("unary {x} {{f=tanh}}")),
        };
    }
    t.end(&x)
}

/// One producer, many readers, and the sum of what they make.
fn fan_out(n: usize) -> String {
    let (mut t, x) = Text::begin();
    let mut sum = t.op(&format!("unary {x} {{f=tanh}}"));
    for i in 0..n / 2 {
        let y = t.op(&format!("scale {x} {{by={:?}}}", 1.0 + i as f64 / 1024.0));
        sum = t.op(&format!("binary {sum}, {y} {{f=add}}"));
    }
    t.end(&sum)
}

/// One producer, many reductions of it.
fn fan_of_reductions(n: usize) -> String {
    let (mut t, x) = Text::begin();
    let mut parts = vec![];
    for i in 0..n / 3 {
        let y = t.op(&format!("scale {x} {{by={:?}}}", 1.0 + i as f64 / 1024.0));
        let z = t.op(&format!("unary {y} {{f=tanh}}"));
        parts.push(t.op(&format!("reduce {z} {{f=sum, axes=[0,1]}}")));
    }
    let rows: Vec<String> =
        parts.iter().map(|p| t.op(&format!("reshape {p} {{shape=[1]}}"))).collect();
    let all = t.op(&format!("concat {} {{axis=0}}", rows.join(", ")));
    t.end(&all)
}

/// Many producers, one sum.
fn fan_in(n: usize) -> String {
    let (mut t, x) = Text::begin();
    let mut parts = vec![];
    for i in 0..n / 4 {
        let w = t.param(&format!("w{i}"), &format!("{COLUMNS}"));
        let row = t.op(&format!("reshape {w} {{shape=[1,{COLUMNS}]}}"));
        let rows = t.op(&format!("broadcast {row} {{shape=[{ROWS},{COLUMNS}]}}"));
        parts.push(t.op(&format!("binary {x}, {rows} {{f=mul}}")));
    }
    // By halves, as a person would not write it and an exporter may.
    while parts.len() > 1 {
        parts = parts
            .chunks(2)
            .map(|p| match p {
                [a, b] => t.op(&format!("binary {a}, {b} {{f=add}}")),
                _ => p[0].clone(),
            })
            .collect();
    }
    t.end(&parts[0])
}

/// Rows divided by their sums, over and over.
fn reductions(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for _ in 0..n / 5 {
        let e = t.op(&format!("unary {x} {{f=exp}}"));
        let s = t.op(&format!("reduce {e} {{f=sum, axes=[1]}}"));
        let c = t.op(&format!("reshape {s} {{shape=[{ROWS},1]}}"));
        let b = t.op(&format!("broadcast {c} {{shape=[{ROWS},{COLUMNS}]}}"));
        x = t.op(&format!("binary {e}, {b} {{f=div}}"));
    }
    t.end(&x)
}

fn softmaxes(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for _ in 0..n {
        x = t.op(&format!("softmax {x} {{log=false}}"));
    }
    t.end(&x)
}

/// Layer normalisations, each with its gain and offset.
fn normalisations(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 0..n / 2 {
        let g = t.param(&format!("g{i}"), &format!("{COLUMNS}"));
        let o = t.param(&format!("o{i}"), &format!("{COLUMNS}"));
        let k = t.operations;
        t.operations += 1;
        writeln!(
            t.code,
            "  %n{k}, %m{k}, %r{k} = layer_norm {x}, {g}, {o} {{eps=1e-5, axes=1, center=true}} @n{k}"
        )
        .expect("memory");
        x = t.op(&format!("unary %n{k} {{f=tanh}}"));
    }
    t.end(&x)
}

/// One concatenation of many parts.
fn concatenation(n: usize) -> String {
    let (mut t, x) = Text::begin();
    let parts: Vec<String> =
        (0..n).map(|i| t.op(&format!("scale {x} {{by={:?}}}", 1.0 + i as f64 / 1024.0))).collect();
    let all = t.op(&format!("concat {} {{axis=1}}", parts.join(", ")));
    let y = t.op(&format!("unary {all} {{f=tanh}}"));
    t.end(&y)
}

/// Concatenations in concatenations, as in DenseNet.
fn nested_concatenations(n: usize) -> String {
    let mut t = Text::default();
    let x = t.input("x", "f32[2,2]");
    let w = t.param("w", "2,2");
    let x = t.op(&format!("binary {x}, {w} {{f=mul}}"));
    let mut all = x.clone();
    for i in 0..n / 2 {
        let y = t.op(&format!("scale {x} {{by={:?}}}", 1.0 + i as f64 / 1024.0));
        all = t.op(&format!("concat {all}, {y} {{axis=1}}"));
    }
    t.end(&all)
}

/// A tensor taken apart row by row, and put together.
fn slices(n: usize) -> String {
    let mut t = Text::default();
    let rows = n / 2;
    let x = t.input("x", &format!("f32[{rows},{COLUMNS}]"));
    let w = t.param("w", &format!("{rows},{COLUMNS}"));
    let x = t.op(&format!("binary {x}, {w} {{f=mul}}"));
    let parts: Vec<String> = (0..rows)
        .map(|i| {
            let row = format!("slice {x} {{starts=[{i},0], sizes=[1,{COLUMNS}], steps=[1,1]}}");
            let row = t.op(&row);
            t.op(&format!("unary {row} {{f={}}}", CURVES[i % CURVES.len()]))
        })
        .collect();
    let all = t.op(&format!("concat {} {{axis=0}}", parts.join(", ")));
    t.end(&all)
}

/// Transpositions and changes of extents between elementwise operations.
fn movements(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 0..n / 3 {
        let turned = t.op(&format!("transpose {x} {{perm=[1,0]}}"));
        let shaped = t.op(&format!("reshape {turned} {{shape=[{ROWS},{COLUMNS}]}}"));
        x = t.op(&format!("unary {shaped} {{f={}}}", CURVES[i % CURVES.len()]));
    }
    t.end(&x)
}

/// x + f(x), over and over.
fn residual_ladder(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 0..n / 2 {
        let y = t.op(&format!("unary {x} {{f={}}}", CURVES[i % CURVES.len()]));
        x = t.op(&format!("binary {x}, {y} {{f=add}}"));
    }
    t.end(&x)
}

/// Down one side and up the other, every rung joined, as in a U-Net.
fn skip_ladder(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    let mut kept = vec![];
    for i in 0..n / 3 {
        x = t.op(&format!("unary {x} {{f={}}}", CURVES[i % CURVES.len()]));
        kept.push(x.clone());
    }
    for old in kept.iter().rev() {
        let y = t.op(&format!("unary {x} {{f=tanh}}"));
        x = t.op(&format!("binary {y}, {old} {{f=add}}"));
    }
    t.end(&x)
}

/// Residual steps that reach back over the last eight values, with a product in each.
fn dense_ladder(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    let mut kept = vec![x.clone()];
    for i in 0..n / 4 {
        let w = t.param(&format!("w{i}"), &format!("{COLUMNS},{COLUMNS}"));
        let p = t.op(&format!("matmul {x}, {w} {{fused=none}}"));
        let y = t.op(&format!("activate {p} {{act=relu}}"));
        let old = &kept[kept.len().saturating_sub(8)];
        let s = t.op(&format!("binary {y}, {old} {{f=add}}"));
        x = t.op(&format!("binary {s}, {x} {{f=add}}"));
        kept.push(x.clone());
    }
    t.end(&x)
}

/// Many small parameters, each with its update.
fn parameters(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 0..n / 3 {
        let w = t.param(&format!("w{i}"), &format!("{COLUMNS}"));
        let row = t.op(&format!("reshape {w} {{shape=[1,{COLUMNS}]}}"));
        let rows = t.op(&format!("broadcast {row} {{shape=[{ROWS},{COLUMNS}]}}"));
        x = t.op(&format!("binary {x}, {rows} {{f=mul}}"));
    }
    t.end(&x)
}

/// Rows of many tables, summed.
fn gathers(n: usize) -> String {
    let (mut t, _) = Text::begin();
    let ids = t.input("ids", "i64[8]");
    let mut sum: Option<String> = None;
    for i in 0..n / 2 {
        let w = t.param(&format!("w{i}"), &format!("16,{COLUMNS}"));
        let rows = t.op(&format!("gather {w}, {ids}"));
        sum = Some(match sum {
            Some(s) => t.op(&format!("binary {s}, {rows} {{f=add}}")),
            None => rows,
        });
    }
    t.end(&sum.expect("n is at least 2"))
}

/// Many results beside the one that is trained.
fn outputs(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 0..n / 2 {
        x = t.op(&format!("unary {x} {{f={}}}", CURVES[i % CURVES.len()]));
        let y = t.op(&format!("reduce {x} {{f=sum, axes=[1]}}"));
        t.result(&format!("r{i}"), &y);
    }
    t.end(&x)
}

/// One matrix product with its bias and activation after the other.
fn products(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 0..n / 5 {
        let w = t.param(&format!("w{i}"), &format!("{COLUMNS},{COLUMNS}"));
        let b = t.param(&format!("b{i}"), &format!("{COLUMNS}"));
        let p = t.op(&format!("matmul {x}, {w} {{fused=none}}"));
        let row = t.op(&format!("reshape {b} {{shape=[1,{COLUMNS}]}}"));
        let rows = t.op(&format!("broadcast {row} {{shape=[{ROWS},{COLUMNS}]}}"));
        let s = t.op(&format!("binary {p}, {rows} {{f=add}}"));
        x = t.op(&format!("activate {s} {{act=relu}}"));
    }
    t.end(&x)
}

/// Many products of one matrix, summed.
fn parallel_products(n: usize) -> String {
    let (mut t, x) = Text::begin();
    let mut sum = x.clone();
    for i in 0..n / 2 {
        let w = t.param(&format!("w{i}"), &format!("{COLUMNS},{COLUMNS}"));
        let p = t.op(&format!("matmul {x}, {w} {{fused=none}}"));
        sum = t.op(&format!("binary {sum}, {p} {{f=add}}"));
    }
    t.end(&sum)
}

/// Products, and between them what stays in f32, so that formats alternate.
fn casts(n: usize) -> String {
    let (mut t, mut x) = Text::begin();
    for i in 0..n / 3 {
        let w = t.param(&format!("w{i}"), &format!("{COLUMNS},{COLUMNS}"));
        let p = t.op(&format!("matmul {x}, {w} {{fused=none}}"));
        let s = t.op(&format!("softmax {p} {{log=false}}"));
        x = t.op(&format!("unary {s} {{f=log}}"));
    }
    t.end(&x)
}

fn convolutions(n: usize) -> String {
    let mut t = Text::default();
    let mut x = t.input("x", "f32[2,8,8,8]");
    for i in 0..n / 2 {
        let w = t.param(&format!("w{i}"), "8,8,3,3");
        let c = t.op(&format!(
            "conv2d {x}, {w} {{stride=[1,1], pad=[1,1,1,1], dilation=[1,1], groups=1}}"
        ));
        x = t.op(&format!("activate {c} {{act=relu}}"));
    }
    t.end(&x)
}
