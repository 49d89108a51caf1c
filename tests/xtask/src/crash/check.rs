//! What must hold of a folder whenever it is looked at.

use super::lab::{Lab, file_name, files};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Format, shape and bytes by name.
pub type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

/// What a log says of a step that does not depend on the clock.
pub type Log = BTreeMap<u64, String>;

pub fn read_tensors(path: &Path) -> Result<Tensors, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
    let tensor = |(name, t): (String, safetensors::tensor::TensorView)| {
        (name, (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec()))
    };
    Ok(file.tensors().into_iter().map(tensor).collect())
}

/// The lines of a log; a last one that was cut off does not count.
pub fn read_log(path: &Path) -> Result<Log, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("the log: {e}"))?;
    let mut log = Log::new();
    for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
        let v: serde_json::Value =
            serde_json::from_str(line).map_err(|e| format!("a line of the log, {line:?}: {e}"))?;
        let step =
            v["step"].as_u64().ok_or_else(|| format!("a line of the log has no step: {line}"))?;
        let said = ["loss", "scale", "skipped", "grad_norm"].map(|k| v[k].to_string()).join(" ");
        if log.insert(step, said).is_some() {
            return Err(format!("the log has step {step} twice"));
        }
    }
    Ok(log)
}

/// The newest checkpoint of a folder, 0 where there is none.
pub fn newest(out: &Path) -> u64 {
    files(out).into_iter().filter_map(|(_, step)| step).max().unwrap_or(0)
}

/// Every file is whole, and checkpoints and log hold, bit by bit, what the uninterrupted run had at that
/// step. Weights are those of the step at which a run ended, which the last run's alone can be held against.
pub fn folder(lab: &Lab, out: &Path) -> Result<(), String> {
    for (path, step) in files(out) {
        let name = file_name(&path);
        let tensors = read_tensors(&path).map_err(|e| format!("{name} is not whole: {e}"))?;
        let want = step.and_then(|step| lab.checkpoints.get(&step));
        // A signal asks for checkpoints at steps that have none otherwise.
        if want.is_some_and(|w| *w != tensors) {
            return Err(format!("{name} is not what the uninterrupted run had"));
        }
    }
    let log = out.join("log.jsonl");
    if log.exists() {
        for (step, said) in read_log(&log)? {
            if lab.log.get(&step) != Some(&said) {
                return Err(format!(
                    "the log says {said} of step {step}, not {:?}",
                    lab.log.get(&step)
                ));
            }
        }
    }
    Ok(())
}

/// A run that went to its end left everything, and nothing half written; of the log, where it was `logged`
/// throughout, every step.
pub fn finished(lab: &Lab, out: &Path, logged: bool) -> Result<(), String> {
    folder(lab, out)?;
    for (name, want) in &lab.weights {
        let have = read_tensors(&out.join(name)).map_err(|e| format!("{name}: {e}"))?;
        if have != *want {
            return Err(format!("{name} is not what the uninterrupted run left"));
        }
    }
    let log = read_log(&out.join("log.jsonl"))?;
    if logged && log != lab.log {
        return Err(format!("the log has {} steps, not {}", log.len(), lab.log.len()));
    }
    let plan = fs::read_dir(out)
        .map_err(|e| e.to_string())?
        .flatten()
        .find(|e| e.path().extension().is_some_and(|e| e == "plan"))
        .ok_or("no plan was saved")?;
    let text = fs::read_to_string(plan.path()).map_err(|e| format!("the plan: {e}"))?;
    precast_plan::Plan::from_json(&text).map_err(|e| format!("the plan: {e}"))?;
    Ok(())
}

/// What a process said is for people: no panic and no trace.
pub fn said(text: &str) -> Result<(), String> {
    for sign in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
        if text.contains(sign) {
            return Err(format!("it said: {text}"));
        }
    }
    Ok(())
}
