//! What a run is, as its checkpoints keep it: what its recipe says, and hashes of its files and of its
//! plan; and what has changed where another run would go on from one of them.

use crate::failure::Outcome;
use precast_compiler::frontend::recipe::{DataSource, Recipe, ScheduleKind};
use precast_plan::{Init, Plan, Role, Storage};
use precast_runtime::fingerprint::{self, Fingerprint, SMALL};
use precast_runtime::{Checkpoint, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// More files than these are one entry, so that a checkpoint stays small.
const MOST_FILES: usize = 256;

/// What a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of Precast that made the plan, and the target it is for.
    version: String,
    target: String,
    /// What the recipe says by dotted keys, defaults included.
    recipe: BTreeMap<String, Value>,
    /// Length of the run in optimizer steps, where every step depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u64>,
    files: Vec<Entry>,
    /// Hash of what the plan computes.
    plan: String,
}

/// A file that the run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    role: Part,
    /// As the recipe names it.
    name: String,
    print: Fingerprint,
}

/// What a file is to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Model,
    Weights,
    Data,
    Ranges,
    Table,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Part::Model => "the model",
            Part::Weights => "the weights",
            Part::Data => "the data",
            Part::Ranges => "the ranges",
            Part::Table => "the target's table",
        }
    }
}

/// What a change of a key means to a run that is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The steps are the same.
    Free,
    /// Steps that come out well are the same, others are what a person changes it for. The plan
    /// may be another.
    Fine,
    /// The steps differ, and the state still means what it meant.
    May,
    /// The state would mean something else.
    Never,
}

/// Keys with their classes; the first that a key begins with counts.
const KEYS: &[(&str, Class)] = &[
    // Of files the content counts, not where they are.
    ("model", Class::Free),
    ("weights", Class::Free),
    ("data.files", Class::Free),
    ("data.on_nonfinite", Class::Fine),
    ("data", Class::Never),
    ("loss", Class::May),
    ("optimizer.kind", Class::Never),
    ("optimizer", Class::May),
    ("schedule", Class::May),
    ("precision.ranges", Class::Free),
    ("precision", Class::May),
    ("loss_scale", Class::May),
    // Compared in steps.
    ("train.length", Class::Free),
    ("train.accumulate", Class::Never),
    ("train.seed", Class::Never),
    ("train.on_nonfinite", Class::Fine),
    ("train.max_skips", Class::Free),
    ("train.log", Class::Free),
    ("train.checkpoint", Class::Free),
    ("train.keep", Class::Free),
    ("train.out", Class::Free),
    ("train", Class::May),
    ("target.table", Class::Free),
    ("target", Class::May),
];

fn class(key: &str) -> Option<Class> {
    let begins = |k: &str| key.strip_prefix(k).is_some_and(|r| r.is_empty() || r.starts_with('.'));
    KEYS.iter().find(|(k, _)| begins(k)).map(|(_, c)| *c)
}

/// One thing that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// In words: what, from what, to what.
    pub text: String,
    /// Not `Free`.
    pub class: Class,
}

impl Identity {
    /// Of a run of `steps` optimizer steps. Reads the files.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn of(recipe: &Recipe, plan: &Plan, steps: u64) -> Outcome<Identity> {
        let mut keys = dotted(recipe);
        keys.retain(|key, _| class(key) != Some(Class::Free));
        Ok(Identity {
            version: env!("CARGO_PKG_VERSION").into(),
            target: plan.target.name.clone(),
            steps: ends_with_the_run(recipe).then_some(steps),
            recipe: keys,
            files: files(recipe, plan)?,
            plan: hash_of(plan),
        })
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers")
    }

    /// Of the run that wrote a checkpoint; `None` where it does not say.
    ///
    /// # Errors
    /// `R0508` where what it says cannot be read.
    pub fn saved(checkpoint: &Checkpoint) -> Result<Option<Identity>, Error> {
        let read = |run| {
            serde_json::from_str(run).map_err(|e| {
                let text = format!("the checkpoint says of its run what cannot be read: {e}");
                Error::new("R0508", text).at(checkpoint.path().display())
            })
        };
        checkpoint.run().map(read).transpose()
    }

    /// What of it counts where all is computed in f32 on the processor: not what chooses formats and kernels.
    pub fn in_f32(&self) -> Identity {
        let formats = |key: &str| {
            ["precision", "loss_scale", "target"]
                .iter()
                .any(|section| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.')))
        };
        let recipe = self.recipe.iter().filter(|(key, _)| !formats(key));
        let files = self.files.iter().filter(|e| !matches!(e.role, Part::Ranges | Part::Table));
        Identity {
            recipe: recipe.map(|(key, value)| (key.clone(), value.clone())).collect(),
            files: files.cloned().collect(),
            plan: String::new(),
            ..self.clone()
        }
    }

    /// Whether the steps of the two are not those of one run.
    pub fn is_another(&self, other: &Identity) -> bool {
        self.changes(other).iter().any(|c| c.class != Class::Fine)
    }

    /// What another run, saved as `before`, would have to be told to become this one.
    pub fn changes(&self, before: &Identity) -> Vec<Change> {
        let mut found = vec![];
        let keys: BTreeSet<&String> = before.recipe.keys().chain(self.recipe.keys()).collect();
        for key in keys {
            let class = class(key).unwrap_or(Class::May);
            let [was, is] = [before, self].map(|i| i.recipe.get(key).unwrap_or(&Value::Null));
            if class != Class::Free && was != is {
                let text = format!("`{key}` {} → {}", shown(was), shown(is));
                found.push(Change { text, class });
            }
        }
        // Where only one of them has a length, the schedule has been named.
        if let (Some(was), Some(is)) = (before.steps, self.steps)
            && was != is
        {
            let text =
                format!("the length of the run, with which its schedule ends: {was} → {is} steps");
            found.push(Change { text, class: Class::May });
        }
        for part in [Part::Model, Part::Weights, Part::Data, Part::Ranges, Part::Table] {
            let of = |i: &'_ Identity| -> Vec<Entry> {
                i.files.iter().filter(|e| e.role == part).cloned().collect()
            };
            let texts = differences(part, &of(before), &of(self));
            found.extend(texts.into_iter().map(|text| Change { text, class: Class::May }));
        }
        if found.is_empty() && before.plan != self.plan {
            found.push(Change { text: self.other_plan(before), class: Class::May });
        }
        found
    }

    fn other_plan(&self, before: &Identity) -> String {
        let differs =
            |what: &str, was: &str, is: &str| (was != is).then(|| format!("{what} {was} → {is}"));
        let by: Vec<String> = [
            differs("Precast", &before.version, &self.version),
            differs("target", &before.target, &self.target),
        ]
        .into_iter()
        .flatten()
        .collect();
        let by = if by.is_empty() { "another build of Precast".into() } else { by.join(", ") };
        format!("the plan, of the same model and recipe: {by}")
    }
}

/// Whether the learning rate of every step depends on the length of the run.
pub fn ends_with_the_run(recipe: &Recipe) -> bool {
    recipe.schedule.kind != ScheduleKind::Constant && recipe.schedule.steps.is_none()
}

/// Of what a plan computes: not of what it says to people, nor of first values, of which a checkpoint
/// holds what they have become.
fn hash_of(plan: &Plan) -> String {
    let mut plan = plan.clone();
    for tensor in &mut plan.tensors {
        if let Storage::Persistent { role, init, .. } = &mut tensor.storage
            && !matches!(role, Role::Constant | Role::WeightCopy)
        {
            *init = Init::Zeros;
        }
    }
    let mut tree = serde_json::to_value(&plan).expect("a plan is JSON");
    let fields = tree.as_object_mut().expect("a plan is an object");
    fields.retain(|key, _| !["model", "summary", "journal"].contains(&key.as_str()));
    fingerprint::hash(tree.to_string().as_bytes())
}

/// What has changed of the files of one kind.
fn differences(part: Part, before: &[Entry], now: &[Entry]) -> Vec<String> {
    let word = part.word();
    match (before, now) {
        ([], []) => return vec![],
        ([], [new, ..]) => return vec![format!("{word}: none → `{}`", new.name)],
        ([old, ..], []) => return vec![format!("{word}: `{}` → none", old.name)],
        _ if before.len() != now.len() => {
            return vec![format!("{word}: {} files → {}", before.len(), now.len())];
        }
        _ => {}
    }
    let changed = |(old, new): (&Entry, &Entry)| {
        let (a, b) = (&old.print, &new.print);
        let how = if a == b {
            return None;
        } else if a.bytes != b.bytes {
            format!("{} bytes → {}", a.bytes, b.bytes)
        } else if a.hash != b.hash {
            "other content".into()
        } else {
            let time = |p: &Fingerprint| {
                p.written_at().map_or("unknown".to_string(), |t| {
                    humantime::format_rfc3339_seconds(t).to_string()
                })
            };
            format!("written {} → {}, of the same size and with the same samples", time(a), time(b))
        };
        Some(format!("{word} `{}`: {how}", new.name))
    };
    before.iter().zip(now).filter_map(changed).collect()
}

fn files(recipe: &Recipe, plan: &Plan) -> Outcome<Vec<Entry>> {
    let mut files = vec![];
    let mut add = |role, name: &Path, path: &Path, whole| -> Outcome {
        let print = Fingerprint::of(path, whole)?;
        files.push(Entry { role, name: name.display().to_string(), print });
        Ok(())
    };
    let model = recipe.model_path();
    add(Part::Model, &recipe.model, &model, SMALL)?;
    // Of weights a checkpoint holds what they have become; constants come from their files again.
    let constants = plan.tensors.iter().filter_map(|t| match &t.storage {
        Storage::Persistent { role: Role::Constant, init, .. } => Some(init),
        _ => None,
    });
    let (mut parts, mut weights) = (BTreeSet::new(), false);
    for init in constants {
        match init {
            Init::File { path, .. } => drop(parts.insert(PathBuf::from(path))),
            Init::Weights(_) => weights = true,
            _ => {}
        }
    }
    let folder = model.parent().unwrap_or(Path::new("."));
    for part in &parts {
        add(Part::Weights, part, &folder.join(part), SMALL)?;
    }
    let named = [
        (Part::Weights, recipe.weights.file.as_ref().filter(|_| weights)),
        (Part::Ranges, recipe.precision.ranges.as_ref()),
        (Part::Table, recipe.target.table.as_ref()),
    ];
    for (role, path) in named {
        if let Some(path) = path {
            add(role, path, &recipe.resolve(path), SMALL)?;
        }
    }
    // What a run reads as a whole anyway is hashed as a whole.
    let whole = match recipe.data.source {
        Some(DataSource::Csv { .. } | DataSource::Bytes { .. }) => u64::MAX,
        Some(DataSource::Safetensors { .. }) | None => SMALL,
    };
    let data = recipe.data_files()?;
    let base = recipe.path.parent().unwrap_or(Path::new(""));
    let mut prints = vec![];
    for path in &data {
        let name = path.strip_prefix(base).unwrap_or(path).display().to_string();
        prints.push(Entry { role: Part::Data, name, print: Fingerprint::of(path, whole)? });
    }
    if prints.len() > MOST_FILES {
        let all = serde_json::to_vec(&prints.iter().map(|e| &e.print).collect::<Vec<_>>());
        let print = Fingerprint {
            bytes: prints.iter().map(|e| e.print.bytes).sum(),
            hash: fingerprint::hash(&all.expect("texts and numbers")),
            written: None,
        };
        let name = format!("{} and {} more", prints[0].name, prints.len() - 1);
        prints = vec![Entry { role: Part::Data, name, print }];
    }
    files.extend(prints);
    Ok(files)
}

/// The recipe by dotted keys, as it is written: what is an enumeration with fields within is flat.
fn dotted(recipe: &Recipe) -> BTreeMap<String, Value> {
    let tree = serde_json::to_value(recipe).expect("texts and numbers");
    let mut out = BTreeMap::new();
    flatten("", tree, &mut out);
    // Other systems' rules have one word each, too.
    out.retain(|key, _| !key.starts_with("precision.policy"));
    out.insert("precision.policy".into(), recipe.precision.policy.name().into());
    out
}

fn flatten(path: &str, value: Value, out: &mut BTreeMap<String, Value>) {
    let at = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let inner = matches!(&value, Value::Object(m) if is_part(&key, m));
                flatten(&if inner { path.to_string() } else { at(&key) }, value, out);
            }
        }
        Value::Array(items) if path == "loss" && items.len() > 1 => {
            for (i, item) in items.into_iter().enumerate() {
                flatten(&format!("loss.terms.{i}"), item, out);
            }
        }
        Value::Array(mut items) if path == "loss" => flatten(path, items.remove(0), out),
        leaf => drop(out.insert(path.to_string(), leaf)),
    }
}

/// Whether a value's fields stand beside their key in a recipe: `kind` of a loss or an optimizer,
/// the data's source.
fn is_part(key: &str, map: &Map<String, Value>) -> bool {
    map.contains_key(key) || (key == "source" && map.contains_key("format"))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "not set".into(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        Recipe::parse("recipe.toml", text).unwrap_or_else(|e| panic!("{e}"))
    }

    const FULL: &str = r#"model = "model.onnx"
[weights]
file = "w.safetensors"
[data]
format = "csv"
files = ["a.csv", "b.csv"]
batch = 4
dims = { n = 4 }
inputs = { x = "a..c" }
targets = { t = "label" }
scale = { x = 2 }
shift = { x = 1 }
split = 0.25
[loss]
kind = "cross_entropy"
class_axis = 1
[optimizer]
kind = "sgd"
lr = 0.5
momentum = 0.9
[schedule]
kind = "cosine"
steps = 100
[precision]
policy = "torch-autocast"
ranges = "ranges.json"
pins = [{ op = "fc1", dtype = "f32" }]
[loss_scale]
min = 1
max = 65536
[train]
steps = 4
normalize = "micro"
on_nonfinite = "skip"
clip_norm = 1
ema = 0.9
freeze = ["a"]
freeze_rows = { e = [0] }
parameters = ["b"]
stop_gradient = ["c"]
log = "log.jsonl"
checkpoint = 2
keep = 3
out = "out"
[target]
table = "table.toml"
"#;

    #[test]
    fn every_key_of_a_recipe_has_a_class() {
        let keys = dotted(&recipe(FULL));
        let without: Vec<_> = keys.keys().filter(|k| class(k).is_none()).collect();
        assert!(without.is_empty(), "give these a class: {without:?}");
        let listed = keys.iter().map(|(k, v)| format!("{:?} {k} = {v}", class(k).unwrap()));
        insta::assert_snapshot!(listed.collect::<Vec<_>>().join("\n"));
    }

    #[test]
    fn changes_are_named() {
        let identity = |text: &str, steps| {
            let recipe = recipe(text);
            let mut keys = dotted(&recipe);
            keys.retain(|key, _| class(key) != Some(Class::Free));
            Identity {
                version: "1".into(),
                target: "cpu".into(),
                recipe: keys,
                steps: ends_with_the_run(&recipe).then_some(steps),
                files: vec![],
                plan: "p".into(),
            }
        };
        let before = identity(FULL, 4);
        let changed = |from: &str, to: &str, steps| {
            assert!(FULL.contains(from), "{from}");
            let now = identity(&FULL.replace(from, to), steps);
            let changes = now.changes(&before);
            changes.into_iter().map(|c| format!("{:?}: {}", c.class, c.text)).collect::<Vec<_>>()
        };
        assert_eq!(changed("lr = 0.5", "lr = 0.25", 4), ["May: `optimizer.lr` 0.5 → 0.25"]);
        assert_eq!(changed("batch = 4", "batch = 8", 4), ["Never: `data.batch` 4 → 8"]);
        assert_eq!(changed("clip_norm = 1", "", 4), ["May: `train.clip_norm` 1.0 → not set"]);
        let other = changed("\"torch-autocast\"", "\"bf16\"", 4);
        assert_eq!(other, ["May: `precision.policy` torch-autocast → bf16"]);
        let other = changed("\"skip\"", "\"stop\"", 4);
        assert_eq!(other, ["Fine: `train.on_nonfinite` skip → stop"]);
        // A longer run under a schedule with an end of its own is the same run.
        assert!(changed("keep = 3", "keep = 1", 8).is_empty());
        let open = |steps| identity(&FULL.replace("steps = 100\n", ""), steps);
        let changes = open(8).changes(&open(4));
        assert_eq!(changes.len(), 1);
        assert!(changes[0].text.contains("4 → 8 steps"), "{changes:?}");
        // The plan counts where nothing explains that it is another.
        let other = Identity { plan: "q".into(), ..before.clone() };
        let text = other.changes(&before).remove(0).text;
        assert_eq!(text, "the plan, of the same model and recipe: another build of Precast");
        let other = Identity { version: "2".into(), ..other };
        assert!(other.changes(&before)[0].text.ends_with("recipe: Precast 1 → 2"));
        assert!(Identity { plan: "p".into(), ..other }.changes(&before).is_empty());
        // The order of the text and its comments are nothing.
        let text = FULL.replace("lr = 0.5\nmomentum = 0.9", "momentum = 0.9 # much\nlr = 5e-1");
        assert_eq!(identity(&text, 4), before);
    }

    #[test]
    fn files_are_compared_by_what_they_hold() {
        let entry = |name: &str, bytes, hash: &str, written| Entry {
            role: Part::Data,
            name: name.into(),
            print: Fingerprint { bytes, hash: hash.into(), written },
        };
        let a = entry("a.csv", 10, "h", None);
        let texts = |b: &[Entry]| differences(Part::Data, std::slice::from_ref(&a), b);
        assert!(texts(&[entry("moved/a.csv", 10, "h", None)]).is_empty());
        assert_eq!(texts(&[entry("a.csv", 12, "i", None)]), ["the data `a.csv`: 10 bytes → 12"]);
        assert_eq!(texts(&[entry("a.csv", 10, "i", None)]), ["the data `a.csv`: other content"]);
        assert_eq!(texts(&[]), ["the data: `a.csv` → none"]);
        assert_eq!(texts(&[a.clone(), a.clone()]), ["the data: 1 files → 2"]);
        let large = |s: u64| entry("big", 1 << 30, "h", Some(s * 1_000_000_000));
        assert_eq!(
            differences(Part::Data, &[large(0)], &[large(60)]),
            [
                "the data `big`: written 1970-01-01T00:00:00Z → 1970-01-01T00:01:00Z, of the same size \
              and with the same samples"
            ]
        );
    }
}
