//! What each section of a recipe may hold, its ranges and its defaults.

use super::read::{Item, Source, Table};
use super::set::Text;
use super::*;
use crate::diagnostic::Diagnostics;
use std::ops::Bound::{Excluded, Included, Unbounded};
use toml::de::DeTable;

/// Checkpoints that stay where the recipe does not say how many.
const KEEP: u64 = 3;

/// Keys by section, to say where a misplaced key belongs.
const KEYS: &[(&str, &[&str])] = &[
    ("the recipe, above the first section", &["model"]),
    (
        "[data]",
        &[
            "format",
            "files",
            "batch",
            "context",
            "dims",
            "shuffle",
            "split",
            "inputs",
            "targets",
            "scale",
            "shift",
            "header",
            "on_nonfinite",
        ],
    ),
    (
        "[loss]",
        &[
            "prediction",
            "target",
            "ignore_index",
            "label_smoothing",
            "class_axis",
            "output",
            "outputs",
            "terms",
        ],
    ),
    ("[optimizer]", &["lr", "betas", "eps", "momentum", "nesterov", "weight_decay", "no_decay"]),
    ("[schedule]", &["warmup", "final_ratio"]),
    ("[precision]", &["policy", "pins", "allow", "ranges"]),
    ("[loss_scale]", &["mode", "growth", "backoff", "interval", "hysteresis", "min", "max"]),
    (
        "[train]",
        &[
            "steps",
            "epochs",
            "accumulate",
            "normalize",
            "on_nonfinite",
            "max_skips",
            "clip_norm",
            "ema",
            "seed",
            "freeze",
            "freeze_rows",
            "parameters",
            "stop_gradient",
            "log",
            "checkpoint",
            "keep",
            "out",
        ],
    ),
    ("[target]", &["device", "table"]),
];

pub fn section_of(key: &str) -> Option<&'static str> {
    KEYS.iter().find(|(_, keys)| keys.contains(&key)).map(|(section, _)| *section)
}

pub fn parse(path: &Path, text: &str, settings: &[String]) -> Result<Recipe> {
    let text = Text::new(text, settings);
    let settings = text.settings();
    let source = Source::new(path, &text);
    let (mut tree, syntax) = DeTable::parse_recoverable(text.recipe());
    for e in &syntax {
        source.error("P0101", e.span().unwrap_or(0..0), "not valid TOML", e.message(), "");
    }
    if !syntax.is_empty() {
        // What was recovered is a guess; complaints about it would be noise.
        return Err(Diagnostics(source.into_errors()));
    }
    set::apply(tree.get_mut(), &settings, &source);
    let recipe = read(&source, tree.get_ref());
    let errors = source.into_errors();
    match recipe {
        Some(recipe) if errors.is_empty() => Ok(recipe),
        _ => Err(Diagnostics(errors)),
    }
}

fn read<'s>(source: &'s Source<'_>, tree: &'s DeTable<'_>) -> Option<Recipe> {
    let root = Table::root(source, tree);
    let model = root.need("model", "`model = \"model.onnx\"`, relative to the recipe");
    let model = model.and_then(|i| i.path());
    let train = train(root.section("train"));
    let seed = train.as_ref().map_or(0, |t| t.seed);
    let weights = weights(root.section("weights"), seed);
    let data = data(root.section("data"));
    let loss = super::loss::loss(root.section("loss"), data.as_ref());
    let optimizer = optimizer(root.section("optimizer"));
    let schedule = schedule(root.section("schedule"));
    let precision = precision(root.section("precision"));
    let loss_scale = loss_scale(root.section("loss_scale"));
    let target = target(root.section("target"));
    if let (Some(train), Some(scale)) = (&train, &loss_scale)
        && train.on_nonfinite == Some(OnNonfinite::Ignore)
        && matches!(scale.mode, LossScaleMode::Static | LossScaleMode::Dynamic)
        && let Some(item) = root.section("train").get("on_nonfinite")
    {
        let label = "and [loss_scale] asks for a scale";
        item.invalid::<()>("under a loss scale no step that overflows is applied", label, "");
    }
    if let (Some(o), Some(s)) = (&optimizer, &schedule) {
        rates(&root, o, s);
    }
    root.finish();
    Some(Recipe {
        path: source.path.into(),
        origin: Origin::new(source.text, tree),
        model: model?,
        weights: weights?,
        data: data?,
        loss: loss?,
        optimizer: optimizer?,
        schedule: schedule?,
        precision: precision?,
        loss_scale: loss_scale?,
        train: train?,
        target: target?,
    })
}

/// Checks that the rates of the schedule are numbers of f32: those of the warm-up and the last.
fn rates(root: &Table, optimizer: &Optimizer, schedule: &Schedule) {
    let (lr, t) = (optimizer.lr, root.section("schedule"));
    let first = lr / schedule.warmup.max(1) as f64;
    for (key, rate) in [("warmup", first), ("final_ratio", lr * schedule.final_ratio)] {
        if let Some(item) = t.get(key).filter(|_| !super::read::holds(rate)) {
            let label = format!("with `lr` = {lr:e} it makes a rate of {rate:e}");
            item.invalid::<()>("the learning rate is no number of f32", &label, "");
        }
    }
}

/// The value of an optional key: absent gives the default, wrong gives `None` (already reported).
pub(super) fn or<'s, 't: 's, T>(
    item: Option<Item<'s, 't>>,
    default: T,
    read: impl FnOnce(Item<'s, 't>) -> Option<T>,
) -> Option<T> {
    match item {
        None => Some(default),
        Some(item) => read(item),
    }
}

fn weights(t: Table, seed: u64) -> Option<Weights> {
    let file = or(t.get("file"), None, |i| i.path().map(Some));
    let init = or(t.get("init"), None, |i| i.word(&[("default", Some(WeightInit::Default))]));
    if t.get("init").is_none() {
        t.reject("seed", "nothing is drawn without `init`");
    }
    let seed = or(t.get("seed"), seed, |i| i.count(0));
    t.finish();
    Some(Weights { file: file?, init: init?, seed: seed? })
}

#[derive(Clone, Copy)]
enum Format {
    Safetensors,
    Csv,
    Bytes,
}

/// What an input or target of byte-level text may be.
const WINDOWS: &[(&str, &str)] = &[("bytes", "bytes"), ("next", "next")];

fn data(t: Table) -> Option<Data> {
    let formats =
        [("safetensors", Format::Safetensors), ("csv", Format::Csv), ("bytes", Format::Bytes)];
    let format = or(t.get("format"), None, |i| i.word(&formats).map(Some));
    let files = files(&t);
    let batch = or(t.get("batch"), None, |i| i.count(1).map(|x| Some(x as usize)));
    let dims = map(&t, "dims", |i| i.count(1).map(|x| x as usize));
    let columns = |i: &Item| match format {
        Some(Some(Format::Bytes)) => i.word(WINDOWS).map(|w| Columns::Name(w.into())),
        _ => columns(i),
    };
    let inputs = map(&t, "inputs", columns);
    let targets = map(&t, "targets", columns);
    let scale = map(&t, "scale", |i| i.real(..));
    let shift = map(&t, "shift", |i| i.real(..));
    let shuffle = or(t.get("shuffle"), true, |i| i.bool());
    let split = or(t.get("split"), 0.0, |i| i.real(0.0..1.0));
    let words = [("error", DataNonfinite::Error), ("allow", DataNonfinite::Allow)];
    let on_nonfinite = or(t.get("on_nonfinite"), DataNonfinite::Error, |i| i.word(&words));
    if let Some(Some(Format::Bytes)) = format {
        t.reject("on_nonfinite", "bytes are finite");
    }

    let source = match format {
        None => None,
        Some(None) => {
            if let Some(Some(_)) = &files {
                t.missing("format", "`format` is \"safetensors\", \"csv\" or \"bytes\"");
            }
            Some(None)
        }
        Some(Some(format)) => source(&t, format, files),
    };
    if !matches!(format, Some(Some(Format::Csv))) {
        t.reject("header", "only CSV files have one");
    }
    if !matches!(format, Some(Some(Format::Bytes))) {
        t.reject("context", "only byte-level text has a context");
    }
    if matches!(format, Some(Some(Format::Csv | Format::Bytes))) && t.get("batch").is_none() {
        t.missing("batch", "`batch` is the number of rows of one batch");
    }
    if let (Some(inputs), true) = (&inputs, t.present()) {
        for key in ["scale", "shift"] {
            let Some(table) = t.get(key).and_then(|i| i.as_section()) else { continue };
            for (name, item) in table.entries() {
                if !inputs.contains_key(&name) {
                    let message = format!("`{key}` names `{name}`, which is not in `inputs`");
                    let known: Vec<&str> = inputs.keys().map(String::as_str).collect();
                    let help = crate::diagnostic::suggestion("inputs", &name, &known);
                    item.invalid::<()>(message, "not an input", &help);
                }
            }
        }
    }
    t.finish();
    Some(Data {
        source: source?,
        batch: batch?,
        dims: dims?,
        inputs: inputs?,
        targets: targets?,
        scale: scale?,
        shift: shift?,
        shuffle: shuffle?,
        split: split?,
        on_nonfinite: on_nonfinite?,
    })
}

/// `file` or `files`: `Some(None)` where neither was written.
fn files(t: &Table) -> Option<Option<Vec<PathBuf>>> {
    let (one, many) = (t.get("file"), t.get("files"));
    match (one, many) {
        (None, None) => Some(None),
        (Some(_), Some(_)) => {
            t.reject("files", "`file` is given too");
            None
        }
        (Some(one), None) => one.path().map(|p| Some(vec![p])),
        (None, Some(many)) => {
            let items = many.array()?;
            if items.is_empty() {
                return many.invalid("`files` is empty", "name at least one", "");
            }
            let paths: Vec<_> = items.iter().map(|i| i.path()).collect();
            paths.into_iter().collect::<Option<Vec<_>>>().map(Some)
        }
    }
}

fn source(
    t: &Table,
    format: Format,
    files: Option<Option<Vec<PathBuf>>>,
) -> Option<Option<DataSource>> {
    let header = match format {
        Format::Csv => or(t.get("header"), true, |i| i.bool()),
        _ => Some(true),
    };
    let context = match format {
        Format::Bytes => {
            let item = t.need("context", "`context` is the number of bytes of one example");
            item.and_then(|i| i.count(1))
        }
        _ => Some(1),
    };
    let files = match files? {
        Some(files) => files,
        None => {
            t.missing("file", "`file = \"…\"` or `files = [\"…\", …]`, relative to the recipe");
            return None;
        }
    };
    Some(Some(match format {
        Format::Safetensors => DataSource::Safetensors { files },
        Format::Csv => DataSource::Csv { files, header: header? },
        Format::Bytes => DataSource::Bytes { files, context: context? as usize },
    }))
}

fn columns(item: &Item) -> Option<Columns> {
    if !item.is_array() {
        return item.string().map(Columns::Name);
    }
    let names: Vec<_> = item.array()?.iter().map(|i| i.string()).collect();
    let names: Vec<String> = names.into_iter().collect::<Option<_>>()?;
    if names.is_empty() {
        return item.invalid(format!("`{}` lists no column", item.key), "empty", "");
    }
    Some(Columns::List(names))
}

/// A table whose keys the person names, in the order of the text.
fn map<T>(
    t: &Table,
    key: &'static str,
    read: impl Fn(&Item) -> Option<T>,
) -> Option<IndexMap<String, T>> {
    let Some(item) = t.get(key) else { return Some(IndexMap::new()) };
    let table = item.as_section()?;
    let entries: Vec<_> =
        table.entries().into_iter().map(|(name, i)| read(&i).map(|x| (name, x))).collect();
    entries.into_iter().collect()
}

#[derive(Clone, Copy, PartialEq)]
enum OptimizerWord {
    Sgd,
    Adam,
    Adamw,
}

fn optimizer(t: Table) -> Option<Optimizer> {
    use OptimizerWord::*;
    let kind = t.need("kind", "`kind` is \"sgd\", \"adam\" or \"adamw\"");
    let kind = kind.and_then(|i| i.word(&[("sgd", Sgd), ("adam", Adam), ("adamw", Adamw)]));
    let lr = t.need("lr", "the learning rate: 0.1 is usual for SGD, 0.001 for Adam");
    let lr = lr.and_then(|i| i.real((Excluded(0.0), Unbounded)));
    // PyTorch's default: AdamW decays, the others do not.
    let decay = if kind == Some(Adamw) { 0.01 } else { 0.0 };
    let weight_decay = or(t.get("weight_decay"), decay, |i| i.real(0.0..));
    let words = [("none", NoDecay::None), ("bias_and_norm", NoDecay::BiasAndNorm)];
    let no_decay = or(t.get("no_decay"), NoDecay::None, |i| i.word(&words));
    let kind = match kind {
        None => {
            for key in ["momentum", "nesterov", "betas", "eps"] {
                t.get(key);
            }
            None
        }
        Some(Sgd) => {
            t.reject("betas", "only `adam` and `adamw` have moments");
            t.reject("eps", "only `adam` and `adamw` divide");
            let momentum = or(t.get("momentum"), 0.0, |i| i.real(0.0..1.0));
            let nesterov = or(t.get("nesterov"), false, |i| i.bool());
            if let (Some(true), Some(0.0), Some(item)) = (nesterov, momentum, t.get("nesterov")) {
                item.invalid::<()>("Nesterov momentum needs a momentum", "momentum is 0", "");
            }
            momentum
                .zip(nesterov)
                .map(|(momentum, nesterov)| OptimizerKind::Sgd { momentum, nesterov })
        }
        Some(word) => {
            t.reject("momentum", "only `sgd` has it; `adam` and `adamw` have `betas`");
            t.reject("nesterov", "only `sgd` has it");
            let betas = or(t.get("betas"), [0.9, 0.999], |i| betas(&i));
            let eps = or(t.get("eps"), 1e-8, |i| i.real((Excluded(0.0), Unbounded)));
            betas.zip(eps).map(|(betas, eps)| match word {
                Adam => OptimizerKind::Adam { betas, eps },
                _ => OptimizerKind::Adamw { betas, eps },
            })
        }
    };
    t.finish();
    Some(Optimizer { kind: kind?, lr: lr?, weight_decay: weight_decay?, no_decay: no_decay? })
}

fn betas(item: &Item) -> Option<[f64; 2]> {
    let parts = item.array()?;
    let [a, b] = parts.as_slice() else {
        return item.invalid("`betas` are two numbers", "not two", "`betas = [0.9, 0.999]`");
    };
    let (a, b) = (a.real(0.0..1.0), b.real(0.0..1.0));
    Some([a?, b?])
}

fn schedule(t: Table) -> Option<Schedule> {
    use ScheduleKind::*;
    let words = [("constant", Constant), ("cosine", Cosine), ("linear", Linear)];
    let kind = or(t.get("kind"), Constant, |i| i.word(&words));
    let warmup = or(t.get("warmup"), 0, |i| i.count(0));
    let (steps, final_ratio) = if kind == Some(Constant) {
        t.reject("steps", "a constant rate has no end");
        t.reject("final_ratio", "a constant rate has no final rate");
        (Some(None), Some(1.0))
    } else {
        (
            or(t.get("steps"), None, |i| i.count(1).map(Some)),
            or(t.get("final_ratio"), 0.0, |i| i.real(0.0..=1.0)),
        )
    };
    if let (Some(warmup), Some(Some(steps))) = (warmup, steps)
        && warmup >= steps
        && let Some(item) = t.get("warmup")
    {
        let message = "the warm-up is as long as the schedule";
        item.invalid::<()>(message, &format!("`steps` is {steps}"), "");
    }
    t.finish();
    Some(Schedule { kind: kind?, warmup: warmup?, steps: steps?, final_ratio: final_ratio? })
}

fn precision(t: Table) -> Option<Precision> {
    let policy = or(t.get("policy"), Policy::Auto, |i| i.word(Policy::WORDS));
    let pins = or(t.get("pins"), vec![], |i| {
        let pins: Vec<_> = i.array()?.iter().map(pin).collect();
        pins.into_iter().collect()
    });
    let allow = or(t.get("allow"), Allow::default(), |i| {
        let words: Vec<_> = i.array()?.iter().map(|i| i.word(ALLOWED)).collect();
        let set = |allow: Allow, w: Option<Set>| Some(w?(allow));
        words.into_iter().try_fold(Allow::default(), set)
    });
    let ranges = or(t.get("ranges"), None, |i| i.path().map(Some));
    t.finish();
    Some(Precision { policy: policy?, pins: pins?, allow: allow?, ranges: ranges? })
}

/// Allows one more precision.
type Set = fn(Allow) -> Allow;

/// What `allow` may name.
const ALLOWED: &[(&str, Set)] =
    &[("tf32", |a| Allow { tf32: true, ..a }), ("fp8", |a| Allow { fp8: true, ..a })];

fn pin(item: &Item) -> Option<Pin> {
    let t = item.as_section()?;
    let op = t.need("op", "a glob over names of operations").and_then(|i| glob(&i));
    let words = [("f32", DType::F32), ("bf16", DType::Bf16), ("f16", DType::F16)];
    let dtype = t.need("dtype", "`dtype` is \"f32\", \"bf16\" or \"f16\"");
    let dtype = dtype.and_then(|i| i.word(&words));
    t.finish();
    Some(Pin { op: op?, dtype: dtype?, place: Some(item.place("this pin")) })
}

fn glob(item: &Item) -> Option<String> {
    let glob = item.string()?;
    match globset::Glob::new(&glob) {
        Ok(_) => Some(glob),
        Err(e) => item.invalid(format!("`{glob}` is not a glob"), &e.kind().to_string(), ""),
    }
}

fn globs(item: &Item) -> Option<Vec<String>> {
    let globs: Vec<_> = item.array()?.iter().map(glob).collect();
    globs.into_iter().collect()
}

fn loss_scale(t: Table) -> Option<LossScale> {
    use LossScaleMode::*;
    let positive = (Excluded(0.0), Unbounded);
    let words = [("auto", Auto), ("off", Off), ("static", Static), ("dynamic", Dynamic)];
    let mode = or(t.get("mode"), Auto, |i| i.word(&words));
    if mode == Some(Off) {
        t.reject("init", "the loss is not scaled");
    }
    if let Some(Off | Static) = mode {
        for key in ["growth", "backoff", "interval", "hysteresis", "min", "max"] {
            t.reject(key, "the scale does not change in this mode");
        }
    }
    // torch/amp/grad_scaler.py: 2^16, doubled after 2000 clean steps, halved on overflow.
    let init = or(t.get("init"), 65536.0, |i| i.real(positive));
    let growth = or(t.get("growth"), 2.0, |i| i.real((Excluded(1.0), Unbounded)));
    let backoff = or(t.get("backoff"), 0.5, |i| i.real((Excluded(0.0), Excluded(1.0))));
    let interval = or(t.get("interval"), 2000, |i| i.count(1));
    let hysteresis = or(t.get("hysteresis"), 1, |i| i.count(1));
    let min = or(t.get("min"), None, |i| i.real(positive).map(Some));
    let max = or(t.get("max"), None, |i| i.real(positive).map(Some));
    if let (Some(init), Some(min), Some(max)) = (init, min, max) {
        // A static scale has no limits.
        let floor = if mode == Some(Static) { 0.0 } else { LossScale::FLOOR };
        let (low, high) = (min.unwrap_or(floor), max.unwrap_or(f64::from(f32::MAX)));
        let given = t.get("init").or(t.get("max")).or(t.get("min"));
        if let Some(item) = given.filter(|_| !(low..=high).contains(&init)) {
            let label = format!("{init} is not between {low} and {high}");
            item.invalid::<()>("the first loss scale is outside `min` and `max`", &label, "");
        }
    }
    t.finish();
    Some(LossScale {
        mode: mode?,
        init: init?,
        growth: growth?,
        backoff: backoff?,
        interval: interval?,
        hysteresis: hysteresis?,
        min: min?,
        max: max?,
    })
}

fn train(t: Table) -> Option<Train> {
    let length = match (t.get("steps"), t.get("epochs")) {
        (Some(steps), None) => steps.count_to(1, MAX_STEPS).map(TrainLength::Steps),
        (None, Some(epochs)) => epochs.count(1).map(TrainLength::Epochs),
        (Some(_), Some(_)) => {
            t.reject("epochs", "`steps` is given too");
            None
        }
        (None, None) => {
            t.missing("steps", "say how long to train: `steps = 1000` or `epochs = 10`");
            None
        }
    };
    let accumulate = or(t.get("accumulate"), 1, |i| i.int(1..=1 << 20).map(|x| x as u32));
    let words = [("whole", Some(Normalize::Whole)), ("micro", Some(Normalize::Micro))];
    let normalize = or(t.get("normalize"), None, |i| i.word(&words));
    let words = [
        ("stop", Some(OnNonfinite::Stop)),
        ("skip", Some(OnNonfinite::Skip)),
        ("ignore", Some(OnNonfinite::Ignore)),
    ];
    let on_nonfinite = or(t.get("on_nonfinite"), None, |i| i.word(&words));
    if let Some(Some(OnNonfinite::Stop | OnNonfinite::Ignore)) = on_nonfinite {
        t.reject("max_skips", "steps are skipped with `on_nonfinite = \"skip\"`");
    }
    let max_skips = or(t.get("max_skips"), 50, |i| i.count(1));
    let clip_norm = or(t.get("clip_norm"), None, |i| i.real((Excluded(0.0), Unbounded)).map(Some));
    let ema = or(t.get("ema"), None, |i| i.real((Included(0.0), Excluded(1.0))).map(Some));
    let seed = or(t.get("seed"), 0, |i| i.count(0));
    let [freeze, parameters, stop_gradient] =
        ["freeze", "parameters", "stop_gradient"].map(|key| or(t.get(key), vec![], |i| globs(&i)));
    let freeze_rows = map(&t, "freeze_rows", |i| {
        let rows: Vec<_> = i.array()?.iter().map(|i| i.int(..)).collect();
        rows.into_iter().collect()
    });
    let log = or(t.get("log"), None, |i| i.path().map(Some));
    let checkpoint = or(t.get("checkpoint"), None, |i| i.count(1).map(Some));
    let keep = or(t.get("keep"), Some(KEEP), |i| keep(&i));
    let out = or(t.get("out"), None, |i| i.path().map(Some));
    t.finish();
    Some(Train {
        length: length?,
        accumulate: accumulate?,
        normalize: normalize?,
        on_nonfinite: on_nonfinite?,
        max_skips: max_skips?,
        clip_norm: clip_norm?,
        ema: ema?,
        seed: seed?,
        freeze: freeze?,
        freeze_rows: freeze_rows?,
        parameters: parameters?,
        stop_gradient: stop_gradient?,
        log: log?,
        checkpoint: checkpoint?,
        keep: keep?,
        out: out?,
    })
}

/// A number of checkpoints; `None` is all of them.
fn keep(i: &Item) -> Option<Option<u64>> {
    if i.is_string() {
        return i.word(&[("all", None)]);
    }
    i.count(0).map(|n| (n > 0).then_some(n))
}

fn target(t: Table) -> Option<Target> {
    let device = or(t.get("device"), "cpu".to_string(), |i| i.string());
    let table = or(t.get("table"), None, |i| i.path().map(Some));
    t.finish();
    Some(Target { device: device?, table: table? })
}
