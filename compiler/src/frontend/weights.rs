//! A file of weights beside the model: what it has, and how its names fit the model's.

// A diagnostic ends the import, so the size of its move does not matter.
#![allow(clippy::result_large_err)]

use crate::diagnostic::Diagnostic;
use precast_plan::words::difference;
use std::collections::{BTreeMap, BTreeSet};

/// Tensors of a safetensors file: element format and extents by name.
#[derive(Debug)]
pub struct WeightFile {
    path: std::path::PathBuf,
    tensors: BTreeMap<String, (safetensors::Dtype, Vec<usize>)>,
}

impl WeightFile {
    /// Reads the header.
    ///
    /// # Errors
    /// P0211 where the file cannot be read, P0217 where it is not safetensors.
    pub fn open(path: &std::path::Path) -> Result<WeightFile, Diagnostic> {
        let place = || crate::Place::File { path: path.into() };
        let unreadable = |e: std::io::Error| {
            let d = Diagnostic::error("P0211", format!("cannot read the weights: {e}")).at(place());
            match precast_plan::instead_of(path).filter(|_| !path.exists()) {
                Some(help) => d.help(help),
                None => d,
            }
        };
        let mut file = std::fs::File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        let header = precast_plan::TensorHeader::read(&mut file, len)
            .map_err(|e| Diagnostic::error("P0217", e).at(place()))?;
        let tensors = header.tensors.into_iter().map(|t| (t.name, (t.dtype, t.shape))).collect();
        Ok(WeightFile { path: path.into(), tensors })
    }

    /// Whether the file has a tensor of this name.
    pub fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Checks that the file has a tensor for at least one of the model's.
    ///
    /// # Errors
    /// P0217 where none of its names is one of the model's.
    pub fn check_names(&self, model: &[&str]) -> Result<(), Diagnostic> {
        if model.is_empty() || model.iter().any(|n| self.holds(n)) {
            return Ok(());
        }
        let of_model: Vec<String> = model.iter().map(|n| format!("`{n}`")).collect();
        let of_file: Vec<String> = self.tensors.keys().map(|n| format!("`{n}`")).collect();
        let file = match of_file.is_empty() {
            true => "it has no tensors".to_string(),
            false => format!("it has {}", shown(&of_file)),
        };
        let message = format!(
            "no tensor of the weight file has the name of one of the model's: {file}; the model has \
             {}",
            shown(&of_model)
        );
        let help = self.renaming(model).unwrap_or_else(|| {
            "names must be those of the model's initializers; `precast show MODEL` lists them"
                .into()
        });
        let place = crate::Place::File { path: self.path.clone() };
        Err(Diagnostic::error("P0217", message).at(place).help(help))
    }

    /// One prefix that, taken from the file's names or put before them, makes at least half of them those of
    /// the model: what wrappers such as `DataParallel` and `torch.compile` add.
    fn renaming(&self, model: &[&str]) -> Option<String> {
        let known: BTreeSet<&str> = model.iter().copied().collect();
        // The prefix before a name that ends in another.
        let before = |long: &str, short: &str| {
            let prefix = long.strip_suffix(short)?;
            (prefix.ends_with('.')).then(|| prefix.to_string())
        };
        let mut prefixes: BTreeMap<(bool, String), usize> = BTreeMap::new();
        for file in self.tensors.keys() {
            // Every tail of the name after a dot is what stripping could leave.
            for (at, _) in file.match_indices('.').filter(|(at, _)| known.contains(&file[at + 1..]))
            {
                *prefixes.entry((true, file[..=at].to_string())).or_default() += 1;
            }
        }
        for name in model {
            for (at, _) in name.match_indices('.').filter(|(at, _)| self.holds(&name[at + 1..])) {
                if let Some(prefix) = before(name, &name[at + 1..]) {
                    *prefixes.entry((false, prefix)).or_default() += 1;
                }
            }
        }
        // Most matches; of equals the shortest prefix, then the first.
        let ((strip, prefix), count) = prefixes
            .into_iter()
            .min_by_key(|((_, prefix), count)| (std::cmp::Reverse(*count), prefix.len()))?;
        // One name that fits by its end, such as `bias`, says nothing of the others.
        if 2 * count < model.len().min(self.tensors.len()) {
            return None;
        }
        let (verb, python) = if strip {
            ("without", format!("{{k.removeprefix(\"{prefix}\"): v for k, v in state.items()}}"))
        } else {
            ("after", format!("{{\"{prefix}\" + k: v for k, v in state.items()}}"))
        };
        Some(format!(
            "{verb} the prefix `{prefix}`, {count} of the model's {} would be found: save {python}",
            model.len()
        ))
    }

    /// A warning where the file gives values to a part of the model: `rest` has the names that it
    /// does not, and where their values are from.
    pub fn partial(
        &self,
        matched: &BTreeSet<&str>,
        drawn: &[&str],
        own: &[&str],
    ) -> Option<Diagnostic> {
        if drawn.is_empty() && own.is_empty() {
            return None;
        }
        let list = |names: &[&str]| {
            shown(&names.iter().map(|n| format!("`{n}`")).collect::<Vec<String>>())
        };
        let total = matched.len() + drawn.len() + own.len();
        let mut message =
            format!("the weight file gives {} of the model's {total} tensors", matched.len());
        if !drawn.is_empty() {
            message += &format!("; {} are drawn: {}", drawn.len(), list(drawn));
        }
        if !own.is_empty() {
            message += &format!("; {} are the model's own: {}", own.len(), list(own));
        }
        let unused: Vec<&str> =
            self.tensors.keys().map(String::as_str).filter(|n| !matched.contains(n)).collect();
        let place = crate::Place::File { path: self.path.clone() };
        let d = Diagnostic::warning("P0227", message).at(place);
        Some(match unused.is_empty() {
            true => d,
            false => d.help(format!(
                "{} tensors of the file are not used: {}",
                unused.len(),
                list(&unused)
            )),
        })
    }

    /// Checks that the file has a tensor for a parameter.
    ///
    /// # Errors
    /// P0217: absent (with the nearest name), other extents, or a format that is not a real one.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), Diagnostic> {
        use safetensors::Dtype::{BF16, F16, F32};
        let place = crate::Place::Tensor { path: self.path.clone(), tensor: name.into() };
        let Some((dtype, have)) = self.tensors.get(name) else {
            let near = self
                .tensors
                .iter()
                .filter(|(_, (_, s))| s == shape)
                .map(|(n, _)| (strsim::jaro_winkler(n, name), n))
                .max_by(|a, b| a.0.total_cmp(&b.0));
            let d = Diagnostic::error("P0217", "the weight file has no such tensor").at(place);
            return Err(match near {
                Some((_, n)) => d.help(format!(
                    "a tensor of the same shape is named `{n}`; names must be those of the model's \
                     initializers"
                )),
                None => d.help("names must be those of the model's initializers"),
            });
        };
        if have != shape {
            let differ =
                difference((have.as_slice(), "in the weight file"), (shape, "in the model"));
            let message =
                format!("the weight file has shape {have:?}, the model {shape:?}: {differ}");
            return Err(Diagnostic::error("P0217", message)
                .at(place)
                .help("give the weights of this model, or export the model that they are of"));
        }
        if !matches!(dtype, F32 | F16 | BF16) {
            let message = format!("the weight file stores {dtype:?}");
            return Err(Diagnostic::error("P0217", message)
                .at(place)
                .help("weights are read from F32, F16 or BF16"));
        }
        Ok(())
    }
}

/// A few names and how many more there are.
pub fn shown(names: &[String]) -> String {
    const MOST: usize = 5;
    let first = names[..names.len().min(MOST)].join(", ");
    match names.len().saturating_sub(MOST) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
