//! Which forms of the generator some text has: flags and formats of hand-written kernels, and what
//! row programs are made of. The lists are those of `runtime/src/cuda/kernels` and
//! `runtime/src/cuda/text`; what they do not name is not asked for.

use std::collections::{BTreeMap, BTreeSet};

const PRODUCTS: &[&str] = &["gemm", "conv", "conv_data_grad", "conv_filter_grad"];
const SUMS: &[&str] = &["gemm_sum", "conv_sum", "conv_data_grad_sum", "conv_filter_grad_sum"];
const ATTENTION: &[&str] = &["attention", "attention_keys", "attention_queries"];
const GRADIENTS: &[&str] = &["attention_keys", "attention_queries"];
const DIRECT: &[&str] = &["conv_direct", "conv_direct_data_grad", "conv_direct_filter_grad"];
const POOLS: &[&str] = &["max_pool", "max_pool_grad"];
const TABLES: &[&str] = &["gather", "scatter_sum"];

const BOTH: &[&str] = &["0", "1"];
const REALS: &[&str] = &["float", "f16", "bf16"];
const WIDTHS: &[&str] = &["1", "4", "8"];

/// Families, and what has to have these values in each of them.
const EACH: &[(&[&str], &[&str], &[&str])] = &[
    (PRODUCTS, &["TENSOR", "TF32", "SPLIT", "A_VEC", "B_VEC"], BOTH),
    (PRODUCTS, &["CT", "AT", "BT"], REALS),
    (PRODUCTS, &["Off"], &["int", "i64"]),
    (ATTENTION, &["CAUSAL", "MASK", "VEC_Q", "VEC_K", "VEC_V"], BOTH),
    (ATTENTION, &["T"], &["f16", "bf16"]),
    (ATTENTION, &["QT", "KT", "VT", "MaskT"], REALS),
    (&["attention"], &["RAW_MAX", "PAIR_O"], BOTH),
    (&["attention_keys"], &["PAIR_K", "PAIR_V"], BOTH),
    (&["attention_queries"], &["PAIR_Q"], BOTH),
    (GRADIENTS, &["VEC_G"], BOTH),
    (GRADIENTS, &["GT"], REALS),
    (&["attention_delta"], &["OT", "GT"], REALS),
    (DIRECT, &["TF32"], BOTH),
    (POOLS, &["XT", "YT"], REALS),
    (POOLS, &["CHANNELS_LAST"], BOTH),
    (POOLS, &["VEC"], WIDTHS),
    (&["gather"], &["COPY16"], BOTH),
    (&["gather"], &["OutT"], REALS),
    (&["scatter_sum"], &["WIDE"], BOTH),
    (&["scatter_sum"], &["GradT"], REALS),
    (TABLES, &["TableT"], REALS),
    (TABLES, &["IdT"], &["i64", "int"]),
    (TABLES, &["VEC"], WIDTHS),
    (&["scatter_count", "scatter_start", "scatter_place"], &["IdT"], &["i64", "int"]),
    (&["zero"], &["TableT"], &["float"]),
    (&["last_index"], &["IdT"], &["i64", "int"]),
    (&["cumsum"], &["EXCLUSIVE", "REVERSE", "LINE_A_THREAD", "REAL"], BOTH),
    (&["top_k"], &["LARGEST", "SHARED", "REAL"], BOTH),
    (&["cumsum", "top_k"], &["XT"], &["float", "f16", "bf16", "i64", "int", "u8"]),
];

/// Families, and what has to have these values in one of them or another.
const ONE: &[(&[&str], &[&str], &[&str])] = &[
    (PRODUCTS, &["ROWS_FAST", "A_OUTER", "B_OUTER", "A_PLAIN_K"], BOTH),
    (PRODUCTS, &["B_CHECK", "B_PLAIN_O", "B_PLAIN_K"], BOTH),
    (PRODUCTS, &["LANES"], &["1", "4", "8"]),
    (PRODUCTS, &["BM", "BN"], &["64", "128"]),
    (PRODUCTS, &["AT", "BT"], &["f8e4m3", "f8e5m2"]),
    (PRODUCTS, &["KIND"], &["0", "1", "2", "3"]),
    (SUMS, &["KIND"], &["0", "1", "2", "3"]),
    (ATTENTION, &["MT"], &["1", "2"]),
];

/// What some row program has.
const ROWS: &[&str] = &[
    // Points on their own.
    "v < points; v +=",
    "v < points / 4; v +=",
    "v < points / 8; v +=",
    "take the last points % 4",
    "take the last points % 8",
    "i64 points) {",
    // Many spaces in a launch.
    "the addresses of its ports, its points. Block b",
    "// The pass over many spaces.",
    "// The end: block b combines",
    "threadIdx.x < end % 4",
    "threadIdx.x < end % 8",
    // Turned inputs.
    "__shared__ float tile",
    "__shared__ int tile",
    "__shared__ bool tile",
    // Rows: a part of a warp, a warp, a block.
    "const bool mine = wanted < rows;",
    "threadIdx.x / 32; row < rows;",
    "const int lane = threadIdx.x;",
    "i64 rows) {",
    // What stays between passes: registers, shared memory.
    "[c][j]",
    "const int v = lane + c * ",
    "extern __shared__",
    "The first lanes take what is left of the row.",
    // Rows of several blocks.
    "// Pass 0; several blocks share a row.",
    "// Pass 1; several blocks share a row.",
    "// The end of rows that several blocks shared.",
    "blockIdx.x + 1 == chunks && lane <",
    "lane == 0 && blockIdx.x == 0",
    // Columns, of one block and of several.
    "for (int e = ty; e < points;",
    "for (int e = blockIdx.y * chunk + ty,",
    "// The results of pass 0, from its partial ones.",
    "// The results of pass 1, from its partial ones.",
    "const float share = reciprocal(count);",
    "partial[0 + row] = ",
    // Combinations of threads.
    "reduce_lanes<Sum",
    "reduce_lanes<Max",
    "reduce_lanes<Min",
    "reduce_block<Sum",
    "reduce_block<Max",
    "reduce_block<Min",
    "reduce_columns<Sum",
    "reduce_columns<Max",
    "reduce_columns<Min",
    // Memory.
    "load<1>(",
    "load<4>(",
    "load<8>(",
    "load_apart<4>(",
    "load_apart<8>(",
    "store<1>(",
    "store<4>(",
    "store<8>(",
    "store_apart<4>(",
    "store_apart<8>(",
    "store_one(",
    // Instructions, by how they are spelled.
    "= expf(",
    "= expm1f(",
    "= logf(",
    "= log1pf(",
    "= sqrtf(",
    "= reciprocal_root(",
    "= reciprocal(",
    "= sinf(",
    "= cosf(",
    "= tanhf(",
    "= erff(",
    "= sigmoid(",
    "= floorf(",
    "= ceilf(",
    "= rintf(",
    "= fabsf(",
    "= finite(",
    "= to_int(",
    "= largest(",
    "= smallest(",
    "= powf(",
    "= int_add(",
    "= int_sub(",
    "= int_mul(",
    "= int_div(",
    "= int_max(",
    "= int_min(",
    "= int_abs(",
    "= uniform(",
    "= (int)(",
    "rounded<f16>(",
    "rounded<bf16>(",
    "rounded<f8e4m3>(",
    "rounded<f8e5m2>(",
    "float_of(0x",
];

/// The C++ types of stored elements.
const TYPES: &[&str] = &["float", "f16", "bf16", "f8e4m3", "f8e5m2", "i64", "int", "u8", "flag"];

/// The name of a kernel without the hash behind it.
fn family(entry: &str) -> &str {
    entry.rsplit_once('_').map_or(entry, |(stem, _)| stem)
}

/// What no text has, in words.
pub fn missing(texts: &BTreeMap<String, String>) -> Vec<String> {
    let mut values: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    let (rows, others): (Vec<_>, Vec<_>) = texts.iter().partition(|t| t.0.starts_with("rows_"));
    for (entry, text) in others {
        for line in text.lines() {
            let said = match line.strip_prefix("#define ") {
                Some(rest) => rest.split_once(' '),
                None => line
                    .strip_prefix("typedef ")
                    .and_then(|l| l.strip_suffix(';'))
                    .and_then(|l| l.split_once(' '))
                    .map(|(ty, name)| (name, ty)),
            };
            if let Some((name, value)) = said {
                values.entry((family(entry), name)).or_default().insert(value);
            }
        }
    }
    let has = |family: &str, name: &str, value: &str| {
        values.get(&(family, name)).is_some_and(|v| v.contains(value))
    };
    let mut out = vec![];
    for (families, names, wanted) in EACH {
        for (family, name) in families.iter().flat_map(|f| names.iter().map(move |n| (f, n))) {
            for value in wanted.iter().filter(|v| !has(family, name, v)) {
                out.push(format!("{family} with {name} {value}"));
            }
        }
    }
    for (families, names, wanted) in ONE {
        for name in *names {
            for value in wanted.iter().filter(|v| !families.iter().any(|f| has(f, name, v))) {
                out.push(format!("any of {} with {name} {value}", families.join(", ")));
            }
        }
    }
    let any = |part: &str| rows.iter().any(|(_, text)| text.contains(part));
    out.extend(ROWS.iter().filter(|p| !any(p)).map(|p| format!("rows with `{p}`")));
    for ty in TYPES {
        if !any(&format!("const {ty}* in")) && !any(&format!("const {ty}* __restrict__ in")) {
            out.push(format!("rows that read {ty}"));
        }
        if !any(&format!("{ty}* out")) && !any(&format!("{ty}* __restrict__ out")) {
            out.push(format!("rows that write {ty}"));
        }
    }
    out
}
