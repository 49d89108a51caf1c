//! Graphs for a described H200, finished up to their execution plans. They need cuDNN and no GPU.

use super::*;
use precast_plan::{
    Access, ConvGeometry, ConvKind, DType, Epilogue, EpilogueKind, Math, Storage, Summary,
    TargetSummary, Tensor, VERSION,
};
use std::collections::BTreeSet;

const H200: &str = include_str!("devices/h200.json");

fn empty() -> Plan {
    Plan {
        version: VERSION,
        model: "shapes".into(),
        target: TargetSummary { name: "sm_90".into(), device: "cuda".into() },
        tensors: vec![],
        programs: vec![],
        micro: vec![],
        update: vec![],
        eval: vec![],
        accumulate: 1,
        arena_bytes: 0,
        arena_bound_bytes: 0,
        persistent_bytes: 0,
        results: vec![],
        eval_results: vec![],
        classes: vec![],
        summary: Summary::default(),
        journal: vec![],
    }
}

fn tensor(plan: &mut Plan, dtype: DType, shape: &[u64]) -> u32 {
    let name = format!("t{}", plan.tensors.len());
    let storage = Storage::Arena { offset: 0 };
    plan.tensors.push(Tensor { name, dtype, shape: shape.to_vec(), storage });
    plan.tensors.len() as u32 - 1
}

/// Strides of [n,c,h,w] with channels last or in order.
fn layout(d: [u64; 4], last: bool) -> Vec<i64> {
    let [_, c, h, w] = d.map(|x| x as i64);
    if last { vec![c * h * w, 1, w * c, c] } else { vec![c * h * w, h * w, w, 1] }
}

struct Case {
    g: ConvGeometry,
    kind: ConvKind,
    input: DType,
    output: DType,
    math: Math,
    /// Of activations, of filters.
    last: [bool; 2],
    epilogue: EpilogueKind,
}

fn conv(dnn: &Dnn, c: &Case) -> Offer {
    let mut plan = empty();
    let g = &c.g;
    let x = ([g.n, g.c, g.h, g.w], c.last[0]);
    let w = ([g.o, g.c / g.groups, g.kh, g.kw], c.last[1]);
    let y = ([g.n, g.o, g.oh, g.ow], c.last[0]);
    let (a, b, out) = match c.kind {
        ConvKind::Forward => (x, w, y),
        ConvKind::DataGrad => (y, w, x),
        ConvKind::FilterGrad => (x, y, w),
    };
    let mut access = |t: ([u64; 4], bool), d| Access {
        tensor: tensor(&mut plan, d, &t.0),
        offset: 0,
        strides: layout(t.0, t.1),
    };
    let (a, b) = (access(a, c.input), access(b, c.input));
    let outputs = vec![access(out, c.output)];
    let inputs = match c.epilogue {
        EpilogueKind::Store => vec![],
        _ => vec![Access { tensor: 0, offset: 0, strides: vec![0, 1, 0, 0] }],
    };
    let mut conv = Conv {
        kind: c.kind,
        geometry: g.clone(),
        a,
        b,
        math: c.math,
        epilogue: Epilogue { kind: c.epilogue, scale: None, program: 0, inputs, outputs },
    };
    if let Some(bias) = conv.epilogue.inputs.first_mut() {
        bias.tensor = tensor(&mut plan, DType::F32, &[g.o]);
    }
    dnn.conv(&conv, &plan, Stores::Epilogue)
}

fn geometry(n: u64, c: u64, hw: u64, o: u64, k: u64, stride: u64, pad: u64) -> ConvGeometry {
    let out = (hw + 2 * pad - k) / stride + 1;
    ConvGeometry {
        n,
        c,
        h: hw,
        w: hw,
        o,
        kh: k,
        kw: k,
        oh: out,
        ow: out,
        stride: [stride; 2],
        pad: [pad; 4],
        dilation: [1; 2],
        groups: 1,
    }
}

/// Some convolutions of a CIFAR network and of ResNet-50.
fn geometries() -> Vec<(&'static str, ConvGeometry)> {
    let g = geometry;
    vec![
        ("cifar 3>32 3x3", g(128, 3, 32, 32, 3, 1, 1)),
        ("cifar 128>128 3x3", g(128, 128, 8, 128, 3, 1, 1)),
        ("resnet 3>64 7x7/2", g(64, 3, 224, 64, 7, 2, 3)),
        ("resnet 256>128 1x1", g(64, 256, 56, 128, 1, 1, 0)),
        ("resnet 128>128 3x3/2", g(64, 128, 56, 128, 3, 2, 1)),
        ("resnet 512>2048 1x1", g(64, 512, 7, 2048, 1, 1, 0)),
    ]
}

/// One way of running a graph is enough to know that there are some.
fn described() -> Dnn {
    Dnn::new(For::Described(H200)).unwrap_or_else(|e| panic!("{e}")).at_most(1)
}

fn said(offer: &Offer) -> String {
    match offer {
        Offer::Graph(g) => format!("{} ways, {} ({} B)", g.candidates(), g.tag(0), g.workspace(0)),
        Offer::No(why) => format!("NO: {why}"),
    }
}

/// `cargo test … -- --ignored --nocapture` prints what is supported.
#[test]
#[ignore = "needs cuDNN: tests/gpu/dnn_check"]
fn nvidias_convolutions_have_plans() {
    let dnn = described();
    eprintln!("cuDNN {}", spelled(dnn.api().version()));
    let kinds = [ConvKind::Forward, ConvKind::DataGrad, ConvKind::FilterGrad];
    let mut missing = vec![];
    for (name, g) in geometries() {
        for kind in kinds {
            let weights = kind == ConvKind::FilterGrad;
            for (input, math) in [
                (DType::F32, Math::Exact),
                (DType::F32, Math::Tf32),
                (DType::F16, Math::Exact),
                (DType::Bf16, Math::Exact),
            ] {
                for last in [[false, false], [true, true]] {
                    let outputs: &[DType] = match (input, last[0]) {
                        (DType::F32, _) => &[input],
                        // An engine is compiled for it, which takes seconds.
                        (_, true) => &[input, DType::F32],
                        (_, false) => &[input],
                    };
                    for &output in outputs {
                        let g = g.clone();
                        let epilogue = EpilogueKind::Store;
                        let case = Case { g, kind, input, output, math, last, epilogue };
                        let offer = conv(&dnn, &case);
                        let what = format!(
                            "{name} {kind:?} {input}{} -> {output} x {} w {}",
                            if math == Math::Tf32 { " tf32" } else { "" },
                            if last[0] { "nhwc" } else { "nchw" },
                            if last[1] { "krsc" } else { "kcrs" },
                        );
                        eprintln!("{what}: {}", said(&offer));
                        // What plans ask for: weight gradients in f32, the rest in the format of
                        // the operands. With three channels cuDNN has no f32 result of 16-bit
                        // operands, and a kernel of ours runs.
                        let even = input == DType::F32 || case.g.c.is_multiple_of(8);
                        let asked =
                            if weights { output == DType::F32 && even } else { output == input };
                        if asked && last[0] == last[1] && matches!(offer, Offer::No(_)) {
                            missing.push(what);
                        }
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
#[ignore = "needs cuDNN: tests/gpu/dnn_check"]
fn nvidias_convolutions_end_in_bias_and_relu() {
    let dnn = described();
    let mut missing = vec![];
    for epilogue in [EpilogueKind::Bias, EpilogueKind::BiasRelu] {
        for input in [DType::F16, DType::Bf16, DType::F32] {
            let case = Case {
                g: geometry(64, 64, 56, 64, 3, 1, 1),
                kind: ConvKind::Forward,
                input,
                output: input,
                math: Math::Tf32,
                last: [true, true],
                epilogue,
            };
            let offer = conv(&dnn, &case);
            eprintln!("{input} {epilogue:?}: {}", said(&offer));
            if matches!(&offer, Offer::No(_)) {
                missing.push(format!("{input} {epilogue:?}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// q, k and v as columns of one [b,t,3hd] tensor, o as [b,t,hd].
fn attention(plan: &mut Plan, d: DType, s: [u64; 4], causal: bool) -> Attention {
    let [batch, heads, t, width] = s;
    let all = heads * width;
    let qkv = tensor(plan, d, &[batch, t, 3 * all]);
    let out = tensor(plan, d, &[batch, t, all]);
    let [lse, low] = [(); 2].map(|()| tensor(plan, DType::F32, &[batch, heads, t]));
    let n = |x: u64| x as i64;
    let part = |i: u64| Access {
        tensor: qkv,
        offset: i * all,
        strides: vec![n(t * 3 * all), n(width), n(3 * all), 1],
    };
    Attention {
        batch,
        heads,
        tq: t,
        tk: t,
        d: width,
        scale: 1.0 / (width as f32).sqrt(),
        causal,
        mask: None,
        fill: None,
        safe: false,
        q: part(0),
        k: part(1),
        v: part(2),
        o: Access { tensor: out, offset: 0, strides: vec![n(t * all), n(width), n(all), 1] },
        lse: Access { tensor: lse, offset: 0, strides: vec![n(heads * t), n(t), 1] },
        low: Access { tensor: low, offset: 0, strides: vec![n(heads * t), n(t), 1] },
    }
}

fn gradient(plan: &mut Plan, d: DType, forward: Attention) -> AttentionGrad {
    let shape = plan.tensors[forward.q.tensor as usize].shape.clone();
    let d_qkv = tensor(plan, d, &shape);
    let shape = plan.tensors[forward.o.tensor as usize].shape.clone();
    let d_o = tensor(plan, d, &shape);
    let moved = |a: &Access, tensor| Access { tensor, ..a.clone() };
    AttentionGrad {
        d_o: moved(&forward.o, d_o),
        d_q: moved(&forward.q, d_qkv),
        d_k: moved(&forward.k, d_qkv),
        d_v: moved(&forward.v, d_qkv),
        forward,
    }
}

#[test]
#[ignore = "needs cuDNN: tests/gpu/dnn_check"]
fn nvidias_attention_has_plans() {
    let dnn = described();
    let mut missing = vec![];
    for (name, shape, causal) in [
        ("GPT-2 small", [8, 12, 1024, 64], true),
        ("BERT base", [16, 12, 384, 64], false),
        ("ViT-B/16", [32, 12, 197, 64], false),
        ("head of 128", [2, 16, 2048, 128], true),
        ("tiny GPT", [4, 4, 32, 16], true),
    ] {
        for d in [DType::Bf16, DType::F16] {
            let mut plan = empty();
            let a = attention(&mut plan, d, shape, causal);
            let g = gradient(&mut plan, d, a.clone());
            let offers = [
                ("forward", dnn.attention(&a, &plan)),
                ("backward", dnn.attention_grad(&g, &plan, false)),
                ("backward, deterministic", dnn.attention_grad(&g, &plan, true)),
            ];
            for (what, offer) in offers {
                eprintln!("{name} {d} {what}: {}", said(&offer));
                if matches!(offer, Offer::No(_)) {
                    missing.push(format!("{name} {d} {what}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
#[ignore = "needs cuDNN: tests/gpu/dnn_check"]
fn nvidias_what_cudnn_lacks_is_said() {
    let dnn = described();
    let mut plan = empty();
    let a = attention(&mut plan, DType::F32, [1, 1, 64, 64], false);
    let Offer::No(why) = dnn.attention(&a, &plan) else { panic!("f32 attention has no plan") };
    assert!(why.contains("f32"), "{why}");
    let mut a = attention(&mut plan, DType::F16, [1, 1, 64, 64], true);
    a.tk = 128;
    assert!(matches!(dnn.attention(&a, &plan), Offer::No(_)));
    // Half a tile of keys without a causal mask, and one of each.
    for (positions, causal, want) in [(192, false, "NaN"), (192, true, ""), (1, true, "one query")]
    {
        let a = attention(&mut plan, DType::F16, [1, 1, positions, 64], causal);
        let g = gradient(&mut plan, DType::F16, a);
        match dnn.attention_grad(&g, &plan, false) {
            Offer::No(why) => assert!(!want.is_empty() && why.contains(want), "{why}"),
            _ => assert!(want.is_empty(), "{positions} positions have a gradient"),
        }
    }
    assert!(Dnn::new(For::Described("no json")).is_err());
}

/// cuDNN proposes its engines with several settings of their knobs, and each is a way of its own.
#[test]
#[ignore = "needs cuDNN: tests/gpu/dnn_check"]
fn nvidias_engines_come_with_several_knobs() {
    let dnn = described().at_most(CANDIDATES);
    let case = |kind, output, k: u64| Case {
        g: geometry(64, 64, 56, 64, k, 1, k / 2),
        kind,
        input: DType::Bf16,
        output,
        math: Math::Exact,
        last: [true, true],
        epilogue: EpilogueKind::Store,
    };
    let mut plan = empty();
    let a = attention(&mut plan, DType::Bf16, [8, 12, 1024, 64], true);
    let g = gradient(&mut plan, DType::Bf16, a.clone());
    let offers = [
        ("forward 3x3", true, conv(&dnn, &case(ConvKind::Forward, DType::Bf16, 3))),
        ("forward 1x1", true, conv(&dnn, &case(ConvKind::Forward, DType::Bf16, 1))),
        ("data 3x3", true, conv(&dnn, &case(ConvKind::DataGrad, DType::Bf16, 3))),
        // cuDNN compiles these kernels, one way of one engine, and two ways at most of two.
        ("filter 3x3", false, conv(&dnn, &case(ConvKind::FilterGrad, DType::F32, 3))),
        ("attention", true, dnn.attention(&a, &plan)),
        ("its gradient", false, dnn.attention_grad(&g, &plan, true)),
    ];
    for (name, several, offer) in offers {
        let graph = offer.graph().expect("a plan");
        let tags: Vec<&str> = (0..graph.candidates()).map(|c| graph.tag(c)).collect();
        eprintln!("{name}:\n  {}", tags.join("\n  "));
        let all: BTreeSet<&str> = tags.iter().copied().collect();
        assert_eq!(all.len(), tags.len(), "{name}: each is told from the others");
        let engine = |tag: &&str| tag.split([' ', ',']).nth(1).expect("a number").to_string();
        let engines: BTreeSet<String> = tags.iter().map(engine).collect();
        assert_eq!(engines.len() < tags.len(), several, "{name}");
        let first: BTreeSet<String> = tags[..engines.len()].iter().map(engine).collect();
        assert!(several || first.len() == engines.len(), "{name}: engines come first");
        assert!(tags.len() <= CANDIDATES && (!several || tags.len() > 3), "{name}");
    }
}

/// A plan whose kernel is compiled comes back from its text, and one of another graph or nonsense
/// gives way to what cuDNN offers.
#[test]
#[ignore = "needs cuDNN: tests/gpu/dnn_check"]
fn nvidias_plans_are_saved() {
    let case = |g: ConvGeometry| Case {
        g,
        kind: ConvKind::FilterGrad,
        input: DType::Bf16,
        output: DType::F32,
        math: Math::Exact,
        last: [true, true],
        epilogue: EpilogueKind::Store,
    };
    let dnn = described();
    let case = case(geometry(64, 64, 56, 64, 3, 1, 1));
    let first = conv(&dnn, &case).graph().expect("a plan");
    let text = first.saved(0).expect("cuDNN writes it down");
    let built = |plan: &[u8], tag: &str| {
        dnn.remember(Some(Remembered { tag: tag.into(), plan: Some(plan.to_vec()) }));
        conv(&dnn, &case).graph().expect("a plan")
    };
    let again = built(&text, first.tag(0));
    assert_eq!((again.tag(0), again.workspace(0)), (first.tag(0), first.workspace(0)));
    // A tag that no candidate has shows that the plan is not built from a configuration.
    let end = first.tag(0).split_once(", ").expect("an engine and a workspace").1;
    let other = format!("engine of another process, {end}");
    assert_eq!(built(&text, &other).tag(0), other);
    assert_eq!(built(b"{}", first.tag(0)).tag(0), first.tag(0));
    assert_eq!(built(&text, "engine 1, workspace -1").tag(0), first.tag(0));
}
