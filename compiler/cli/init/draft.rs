//! The text of a first recipe.

use super::found::{Column, Found};
use super::matching::{self, takes_whole};
use precast_compiler::frontend::onnx::{Dim, InputInfo};
use std::fmt::Write;

/// What a model says of itself.
pub struct Model {
    /// As the recipe names it.
    pub path: String,
    pub inputs: Vec<InputInfo>,
    /// Inputs that no output depends on.
    pub unread: Vec<InputInfo>,
    pub outputs: Vec<InputInfo>,
    /// Whether it has weights without values.
    pub drawn: bool,
}

/// A recipe, and what a person should know of how it came about.
pub struct Draft {
    pub text: String,
    pub notes: Vec<String>,
}

/// A loss and why it is supposed.
struct Loss {
    /// `cross_entropy`, `mse`, `output`.
    kind: &'static str,
    /// The output it reads, where the model has several.
    output: Option<String>,
    why: String,
}

/// What feeds an input or a target.
struct Feed {
    name: String,
    /// As the recipe writes it; `None` where nothing was found.
    columns: Option<String>,
    /// What there is to say of it.
    comment: String,
}

/// Batch of a recipe whose model leaves it open.
const BATCH: usize = 32;
/// Bytes of a window of text where the model leaves that open.
const CONTEXT: usize = 128;
const EPOCHS: usize = 10;

/// Drafts a recipe. `data`: a file as the recipe names it, and what is in it.
pub fn draft(model: &Model, data: Option<(&str, &Found)>) -> Draft {
    let prediction = prediction(&model.outputs);
    let in_model = prediction.is_some_and(is_loss);
    let output = prediction.filter(|_| !in_model);
    let (inputs, target) = feeds(model, output, data.map(|d| d.1));
    let loss = loss(model, prediction, target.as_ref(), data.map(|d| d.1));
    let target = match loss.kind {
        "output" => None,
        _ => Some(target.map_or_else(|| unknown_target(&loss, output), |t| t.0)),
    };
    let mut notes = vec![];
    let mut listed = |head: &str, ports: &[InputInfo]| {
        for (i, port) in ports.iter().enumerate() {
            notes.push(format!(
                "{:12}{}: {}",
                if i == 0 { head } else { "" },
                port.name,
                typed(port)
            ));
        }
    };
    listed("inputs", &model.inputs);
    listed("outputs", &model.outputs);
    notes.push(format!("loss        {}, a guess: {}", loss.kind, loss.why));
    if let Some(n) = fixed_batch(&model.inputs) {
        notes.push(format!(
            "batch       {n}, which the export fixed; exported with dynamic axes, the model takes any"
        ));
    }
    let missing: Vec<&str> = inputs
        .iter()
        .chain(&target)
        .filter(|f| f.columns.is_none())
        .map(|f| f.name.as_str())
        .collect();
    match data {
        None => notes.push(
            "data        data.safetensors is yours to make: the recipe says what goes into it"
                .into(),
        ),
        Some((path, found)) => {
            let rows = match found {
                Found::Safetensors { rows, .. } | Found::Csv { rows, .. } => format!("{rows} rows"),
                Found::Text { bytes } => format!("{bytes} bytes of text"),
            };
            notes.push(format!("data        {path}: {rows}"));
            for name in missing {
                notes.push(format!(
                    "            nothing in it was found for `{name}`: see the recipe"
                ));
            }
        }
    }
    let text = text(model, &loss, &inputs, target.as_ref(), data);
    Draft { text, notes }
}

/// The output that a loss reads: the only one; of several a loss, or what is called logits, or the
/// first.
fn prediction(outputs: &[InputInfo]) -> Option<&InputInfo> {
    let called = |word: &str| outputs.iter().find(|o| o.name.to_lowercase().contains(word));
    let loss = outputs.iter().find(|o| is_loss(o));
    loss.or_else(|| called("logit")).or_else(|| outputs.iter().find(|o| !takes_whole(o)))
}

/// Whether an output is a loss that the model computes.
fn is_loss(output: &InputInfo) -> bool {
    output.dims.as_ref().is_some_and(Vec::is_empty) && !takes_whole(output)
}

/// `f32 [batch, 10]`
fn typed(port: &InputInfo) -> String {
    match &port.dims {
        None => format!("{}, of a rank that the model does not state", port.elem),
        Some(dims) => {
            let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
            format!("{} [{}]", port.elem, dims.join(", "))
        }
    }
}

/// Of a target: what feeds it, and a column of it.
type Target = Option<(Feed, Column)>;

fn feeds(model: &Model, output: Option<&InputInfo>, data: Option<&Found>) -> (Vec<Feed>, Target) {
    let ports = &model.inputs;
    let open = |p: &InputInfo| Feed { name: p.name.clone(), columns: None, comment: typed(p) };
    match data {
        None => (ports.iter().map(open).collect(), None),
        Some(Found::Text { .. }) => {
            let window = |p: &InputInfo| Feed {
                columns: Some(string("bytes")),
                comment: format!("{}: a window of the text", typed(p)),
                ..open(p)
            };
            let feed = Feed {
                name: "targets".into(),
                columns: Some(string("next")),
                comment: "the same window, one byte later".into(),
            };
            let column = Column { name: "next".into(), elem: "i64".into(), row: vec![CONTEXT] };
            (ports.iter().map(window).collect(), Some((feed, column)))
        }
        Some(Found::Safetensors { columns, .. }) => {
            let used = matching::inputs(ports, columns);
            let fed = ports.iter().zip(&used).map(|(p, c)| match c {
                Some(c) => Feed {
                    columns: Some(string(&c.name)),
                    comment: format!("{} from {} {:?} a row", typed(p), c.elem, c.row),
                    ..open(p)
                },
                None => open(p),
            });
            let target = output.and_then(|o| matching::target(Some(o), columns, &used)).map(|c| {
                let feed = Feed {
                    name: bare_word(&c.name),
                    columns: Some(string(&c.name)),
                    comment: format!("{} {:?} a row", c.elem, c.row),
                };
                (feed, c)
            });
            (fed.collect(), target)
        }
        Some(Found::Csv { columns, .. }) => {
            let Some(split) = matching::table(ports, output, columns) else {
                return (ports.iter().map(open).collect(), None);
            };
            let fed = ports.iter().zip(&split.inputs).map(|(p, names)| Feed {
                columns: Some(listed(names, columns)),
                comment: format!("{} from {}", typed(p), counted(names.len())),
                ..open(p)
            });
            let target = split.target.first().map(|first| {
                let names: Vec<String> = split.target.iter().map(|c| c.name.clone()).collect();
                let whole = split.target.iter().all(Column::is_whole);
                let feed = Feed {
                    name: match names.as_slice() {
                        [one] => bare_word(one),
                        _ => "targets".into(),
                    },
                    columns: Some(listed(&names, columns)),
                    comment: counted(names.len()),
                };
                let row = if names.len() == 1 { vec![] } else { vec![names.len()] };
                let elem = if whole { "i64" } else { "f32" }.to_string();
                (feed, Column { name: first.name.clone(), elem, row })
            });
            (fed.collect(), target)
        }
    }
}

fn counted(columns: usize) -> String {
    format!("{columns} column{}", if columns == 1 { "" } else { "s" })
}

/// Columns of a table as the recipe writes them: a range where they stand in a row.
fn listed(names: &[String], columns: &[Column]) -> String {
    let at = |name: &String| columns.iter().position(|c| c.name == *name);
    let places: Vec<Option<usize>> = names.iter().map(at).collect();
    let in_a_row = places.windows(2).all(|w| w[1] == w[0].map(|i| i + 1));
    match names {
        [one] => string(one),
        [first, .., last] if in_a_row && !first.contains("..") && !last.contains("..") => {
            string(&format!("{first}..{last}"))
        }
        _ => format!("[{}]", names.iter().map(|n| string(n)).collect::<Vec<_>>().join(", ")),
    }
}

/// The last extent, where it is known.
fn last(output: &InputInfo) -> Option<usize> {
    match output.dims.as_ref()?.last()? {
        Dim::Known(n) => Some(*n),
        Dim::Named(_) => None,
    }
}

fn loss(
    model: &Model,
    prediction: Option<&InputInfo>,
    target: Option<&(Feed, Column)>,
    data: Option<&Found>,
) -> Loss {
    let output = prediction.filter(|_| model.outputs.len() > 1).map(|p| p.name.clone());
    let guess = |kind, why: String| Loss { kind, output: output.clone(), why };
    let Some(p) = prediction else {
        return guess("mse", "the model has no output of real numbers".into());
    };
    let name = &p.name;
    if is_loss(p) {
        return guess(
            "output",
            format!("`{name}` is one number, as a loss is that a model computes"),
        );
    }
    if let Some(Found::Text { .. }) = data {
        return guess("cross_entropy", "what follows a byte is one of 256".into());
    }
    if let (Some((feed, column)), Some(_)) = (target, data) {
        let from = &column.name;
        return match column.is_whole() && last(p) != Some(1) {
            true => guess(
                "cross_entropy",
                format!(
                    "`{from}`, which feeds `{}`, holds whole numbers, as classes are",
                    feed.name
                ),
            ),
            false => guess("mse", format!("`{from}` holds numbers beside `{name}`")),
        };
    }
    let rank = p.dims.as_ref().map(Vec::len);
    match (rank, last(p)) {
        _ if name.to_lowercase().contains("logit") => {
            guess("cross_entropy", format!("the output is called `{name}`"))
        }
        (Some(rank), Some(n)) if rank > 1 && n > 1 => {
            guess("cross_entropy", format!("`{name}` has {n} numbers a row, as for {n} classes"))
        }
        _ => guess("mse", format!("`{name}` has one number a row, or none that the model states")),
    }
}

/// The target of a loss where no data says what there is.
fn unknown_target(loss: &Loss, output: Option<&InputInfo>) -> Feed {
    let dims = output.and_then(|o| o.dims.as_deref()).unwrap_or_default();
    let names: Vec<String> = dims.iter().map(ToString::to_string).collect();
    let (name, elem, shape) = match loss.kind {
        // Classes are on axis 1 of images, and on the last elsewhere.
        "cross_entropy" => {
            let axis = if names.len() > 3 { 1 } else { names.len().saturating_sub(1) };
            let others = names.iter().enumerate().filter(|(i, _)| *i != axis);
            ("labels", "i64", others.map(|(_, n)| n.clone()).collect())
        }
        _ => ("targets", "f32", names),
    };
    let comment = format!("{elem} [{}]", shape.join(", "));
    Feed { name: name.into(), columns: None, comment }
}

/// The extent of the first axis, where the model fixes it.
fn fixed_batch(inputs: &[InputInfo]) -> Option<usize> {
    inputs.iter().find_map(|i| match i.dims.as_ref()?.first()? {
        Dim::Known(n) => Some(*n),
        Dim::Named(_) => None,
    })
}

fn text(
    model: &Model,
    loss: &Loss,
    inputs: &[Feed],
    target: Option<&Feed>,
    data: Option<(&str, &Found)>,
) -> String {
    let mut out = String::new();
    let o = &mut out;
    let fixed = fixed_batch(&model.inputs);
    let rows = match data {
        Some((_, Found::Safetensors { rows, .. } | Found::Csv { rows, .. })) => Some(*rows),
        Some((_, Found::Text { bytes })) => {
            Some((*bytes as usize).saturating_sub(1) / context(model))
        }
        None => None,
    };
    // Nine tenths of the rows have to fill a batch.
    let batch = fixed.unwrap_or_else(|| rows.map_or(BATCH, |r| BATCH.min((r * 9 / 10).max(1))));
    let held_back = rows.is_none_or(|r| r * 9 / 10 >= batch);
    let mut line = |text: String| writeln!(o, "{text}").expect("writing to a String");
    line("# Drafted by `precast init`. docs/RECIPE.md describes every key.".into());
    line(format!("model = {}", string(&model.path)));
    if model.drawn {
        line("\n[weights]".into());
        line("init = \"default\" # the model has no values for its weights: draw them".into());
    }
    line("\n[data]".into());
    match data {
        Some((path, found)) => {
            line(format!("format = {}", string(found.format())));
            line(format!("file = {}", string(path)));
            if let Found::Csv { header: false, .. } = found {
                line("header = false # columns are numbers from 0".into());
            }
            if let Found::Text { .. } = found {
                line(format!(
                    "context = {} # bytes of one example: no more than the model has positions",
                    context(model)
                ));
            }
        }
        None => {
            line("# A file of tensors whose first axis is the examples. Python writes one:".into());
            let fed = inputs.iter().chain(target);
            let fed: Vec<String> =
                fed.map(|f| format!("{:?}: {}", f.name, variable(&f.name))).collect();
            line("#   from safetensors.numpy import save_file".into());
            line(format!("#   save_file({{{}}}, \"data.safetensors\")", fed.join(", ")));
            line("# (`format` may also be \"csv\" or \"bytes\".)".into());
            line("format = \"safetensors\"".into());
            line("file = \"data.safetensors\"".into());
        }
    }
    line(match fixed {
        Some(n) => format!("batch = {n} # the model's own: its export fixed it"),
        None => format!("batch = {batch}"),
    });
    match held_back {
        true => line("split = 0.1 # a tenth of the rows, drawn once, is the test set".into()),
        false => line("# split = 0.1 # would hold back a tenth of the rows to test on".into()),
    }
    // What a file is to be called like is what feeds it.
    let columns = |f: &Feed| match (&f.columns, data) {
        (Some(columns), _) => (columns.clone(), ""),
        (None, None) => (string(&f.name), ""),
        (None, Some(_)) => (string("?"), "CHOOSE: "),
    };
    line("\n# An input of the model = what feeds it.".into());
    line("[data.inputs]".into());
    for f in inputs {
        let (columns, note) = columns(f);
        line(format!("{} = {columns} # {note}{}", key(&f.name), plain(&f.comment)));
    }
    for i in &model.unread {
        line(format!("# {} is left out: no output of the model depends on it", plain(&i.name)));
    }
    if let Some(f) = target {
        let (columns, note) = columns(f);
        line("\n# What the loss compares with.".into());
        line("[data.targets]".into());
        line(format!("{} = {columns} # {note}{}", key(&f.name), plain(&f.comment)));
    }
    line("\n[loss]".into());
    line(format!("# A guess: {}.", plain(&loss.why)));
    line(format!("kind = {} # or {}", string(loss.kind), others(loss.kind)));
    if let Some(output) = &loss.output {
        line(format!("prediction = {} # of the model's outputs", string(output)));
    }
    line("\n[optimizer]".into());
    line("kind = \"adamw\" # or \"adam\", \"sgd\"".into());
    line("lr = 1e-3".into());
    line("\n[train]".into());
    line(format!("epochs = {EPOCHS} # or `steps`"));
    let per_epoch = rows.map(|r| (r * 9 / 10 / batch.max(1)).max(1));
    let note = match per_epoch {
        Some(_) => "# steps, an epoch here, between checkpoints: the 3 newest and the best stay",
        None => "# steps between checkpoints: the 3 newest and the best stay",
    };
    line(format!("checkpoint = {} {note}", per_epoch.unwrap_or(100)));
    line("log = \"log.jsonl\" # one JSON line a step".into());
    line("\n[precision]".into());
    line(
        "policy = \"auto\" # 16 bits where they pay on the target; or \"f32\", \"bf16\", \"f16\""
            .into(),
    );
    line("\n[target]".into());
    line("device = \"cpu\" # or \"cuda\"".into());
    out
}

fn others(kind: &str) -> String {
    let others = ["cross_entropy", "mse", "output"].into_iter().filter(|k| *k != kind);
    others.map(string).collect::<Vec<_>>().join(", ")
}

/// Bytes of a window of text: what the model's first input takes.
fn context(model: &Model) -> usize {
    let dims = model.inputs.first().and_then(|i| i.dims.as_deref());
    match dims.and_then(|d| d.get(1)) {
        Some(Dim::Known(n)) if *n > 0 => *n,
        _ => CONTEXT,
    }
}

/// A text that ends with its line.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A string of TOML, on one line: what JSON escapes, TOML does, too.
fn string(text: &str) -> String {
    serde_json::Value::String(text.into()).to_string()
}

/// A key of TOML.
fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(bare) { name.into() } else { string(name) }
}

/// A name for the target that a column feeds: its last word.
fn bare_word(column: &str) -> String {
    let word = column.rsplit(['.', '/']).next().unwrap_or(column);
    if word.is_empty() { "targets".into() } else { word.into() }
}

/// A name as a variable of Python.
fn variable(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let text: String = name.chars().map(letter).collect();
    if text.starts_with(|c: char| c.is_ascii_digit()) { format!("_{text}") } else { text }
}
