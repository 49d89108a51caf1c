//! What a person can do with a run that has ended: commands with the paths of this run.

use std::path::{Path, PathBuf};

/// A run that has ended.
pub struct Ended<'a> {
    pub recipe: &'a Path,
    /// Options that say what is compiled, each behind a space: ` --policy f32`.
    pub options: &'a str,
    /// The folder of what was saved.
    pub out: &'a Path,
    /// Where it is not the recipe's own: what was asked for.
    pub asked_out: Option<&'a Path>,
    pub saved: &'a [PathBuf],
    pub steps: u64,
    /// The step it was to end with.
    pub total: u64,
    /// Whether the rate of every step depends on how long the run is.
    pub bends: bool,
    /// Whether its numbers are good.
    pub good: bool,
}

/// Lines for the end of a summary, each a command or a line of Python and what it does.
pub fn lines(run: &Ended) -> Vec<(String, &'static str)> {
    let recipe = format!("{}{}", quoted(run.recipe), run.options);
    let weights = run.out.join("weights.safetensors");
    let out = run.asked_out.map_or(String::new(), |out| format!(" --out {}", quoted(out)));
    let mut lines = vec![];
    if run.good {
        let which = match run.asked_out {
            Some(_) => format!(" --weights {}", quoted(&weights)),
            None => String::new(),
        };
        lines.push((format!("precast eval {recipe}{which}"), "tests the weights again"));
    }
    let checkpoint = run.saved.iter().rev().find(|p| is_checkpoint(p));
    if let Some(path) = checkpoint {
        let path = quoted(path);
        // A run that has come to its end goes on only for longer.
        let more = match run.steps >= run.total {
            true if run.bends => format!(" --steps {} --resume-changed", 2 * run.total),
            true => format!(" --steps {}", 2 * run.total),
            false => String::new(),
        };
        lines.push((
            format!("precast train {recipe} --resume {path}{more}{out}"),
            "goes on from the last checkpoint",
        ));
    } else if run.good {
        lines.push((
            format!(
                "precast train {recipe} --set train.checkpoint={}{out}",
                (run.total / 4).max(1)
            ),
            "would keep checkpoints to resume from",
        ));
    }
    // A disk that was full has none of this run.
    if run.saved.contains(&weights) {
        let file = weights.display().to_string();
        lines.push((
            format!("model.load_state_dict(safetensors.torch.load_file({file:?}), strict=False)"),
            "loads the weights in PyTorch",
        ));
    }
    lines
}

fn is_checkpoint(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str());
    name.is_some_and(|n| n.starts_with("checkpoint-") && n.ends_with(".safetensors"))
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    match !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        for (path, want) in [
            ("runs/a.toml", "runs/a.toml"),
            ("my runs/a.toml", "'my runs/a.toml'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quoted(Path::new(path)), want);
        }
    }

    #[test]
    fn a_run_that_was_cut_off_goes_on_to_its_end() {
        let saved = [PathBuf::from("t/checkpoint-4.safetensors"), "t/weights.safetensors".into()];
        let run = Ended {
            recipe: Path::new("r.toml"),
            options: "",
            out: Path::new("t"),
            asked_out: None,
            saved: &saved,
            steps: 4,
            total: 8,
            bends: false,
            good: false,
        };
        let first = |run: &Ended| lines(run)[0].0.clone();
        assert_eq!(first(&run), "precast train r.toml --resume t/checkpoint-4.safetensors");
        let run = Ended { asked_out: Some(Path::new("t")), steps: 8, good: true, ..run };
        assert_eq!(first(&run), "precast eval r.toml --weights t/weights.safetensors");
        assert_eq!(
            lines(&run)[1].0,
            "precast train r.toml --resume t/checkpoint-4.safetensors --steps 16 --out t"
        );
        // A rate that ends with the run is another where the run is longer.
        let run = Ended { options: " --policy f32", bends: true, ..run };
        assert_eq!(
            lines(&run)[1].0,
            "precast train r.toml --policy f32 --resume t/checkpoint-4.safetensors --steps 16 \
             --resume-changed --out t"
        );
        // What was not saved is not loaded.
        let python = |run: &Ended| lines(run).iter().any(|(l, _)| l.starts_with("model."));
        assert!(python(&run));
        assert!(!python(&Ended { saved: &saved[..1], good: false, ..run }));
    }
}
