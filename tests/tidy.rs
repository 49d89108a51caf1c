//! Rules of the project that a compiler does not check.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest a source file may be.
const MAX_LINES: usize = 600;

/// Modules of the compiler in layers: a module may use its own layer and those before it. `ir` and
/// `ops` are one layer, since a node holds its operation.
const LAYERS: &[&[&str]] = &[
    &["diagnostic", "work"],
    &["ir", "ops"],
    &["reference"],
    &["text"],
    &["frontend"],
    &["simplify"],
    &["autodiff"],
    &["precision", "cost"],
    &["bound"],
    &["egraph"],
    &["turn"],
    &["schedule"],
    &["emit"],
    &["pipeline"],
    &["snapshot"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files under `folder` with one of the extensions, in order.
fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(|e| e.expect("a readable folder").path()) {
            let name = entry.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
            if entry.is_dir() && name != "target" && name != ".git" && name != ".venv" {
                folders.push(entry);
            } else if extensions.iter().any(|e| name.ends_with(e)) {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    ["compiler", "runtime", "tests", "examples"].iter().flat_map(|f| files(f, &[".rs"])).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines of a source that are not comments, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, l)| !l.trim_start().starts_with("//"))
        .map(|(i, l)| (i + 1, l))
}

/// Every piece of `text` that follows `prefix` and is made of lower-case letters and underscores.
fn words_after<'t>(text: &'t str, prefix: &str) -> Vec<&'t str> {
    text.match_indices(prefix)
        .map(|(at, _)| {
            let rest = &text[at + prefix.len()..];
            let end =
                rest.find(|c: char| !c.is_ascii_lowercase() && c != '_' && !c.is_ascii_digit());
            &rest[..end.unwrap_or(rest.len())]
        })
        .filter(|w| !w.is_empty())
        .collect()
}

fn assert_none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}\n{}", faults.join("\n"));
}

#[test]
fn files_are_short_enough_to_read() {
    let sources = sources();
    assert!(sources.len() > 40, "the sources were not found");
    let faults: Vec<String> = sources
        .iter()
        .map(|path| (path, read(path).lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert_none(&faults, "Split these files by what they are about:");
}

#[test]
fn arrows_between_modules_point_one_way() {
    let layer = |module: &str| LAYERS.iter().position(|l| l.contains(&module));
    let src = root().join("compiler/src");
    let lib = read(&src.join("lib.rs"));
    for module in words_after(&lib, "mod ") {
        assert!(layer(module).is_some(), "give module `{module}` a place in tests/tidy.rs");
    }
    let mut faults = vec![];
    let mut arrows = 0;
    for path in files("compiler/src", &[".rs"]) {
        let inside = path.strip_prefix(&src).expect("under compiler/src");
        let module = inside.iter().next().expect("a file").to_str().expect("UTF-8");
        let module = module.trim_end_matches(".rs");
        // Tests of a module may use whatever makes them short.
        let is_test = inside.iter().any(|part| part == "tests" || part == "tests.rs");
        if module == "lib" || is_test {
            continue;
        }
        let own = layer(module).unwrap_or_else(|| panic!("no layer for `{module}`"));
        let text = read(&path);
        let text = text.split("#[cfg(test)]\nmod tests {").next().expect("split gives one");
        for (number, line) in code(text) {
            let grouped = line.trim_start().starts_with("use crate::{");
            let used = words_after(line, if grouped { "use crate::{" } else { "crate::" });
            for target in used.into_iter().filter(|t| lib.contains(&format!("mod {t};"))) {
                arrows += 1;
                if layer(target).is_none_or(|l| l > own) {
                    faults.push(format!("{}:{number}: `{module}` uses `{target}`", path.display()));
                }
            }
        }
    }
    assert!(arrows > 50, "the scan found only {arrows} uses");
    assert_none(&faults, "Against the order of the modules:");
}

#[test]
fn crates_know_only_what_they_may() {
    for (manifest, forbidden) in [
        ("compiler/Cargo.toml", &["precast-runtime"][..]),
        ("runtime/Cargo.toml", &["precast-compiler"]),
        ("runtime/plan/Cargo.toml", &["precast-compiler", "precast-runtime"]),
    ] {
        let text = read(&root().join(manifest));
        for name in forbidden {
            assert!(!text.contains(name), "{manifest} depends on {name}");
        }
    }
}

/// What a package builds without need, every build, every check and every release pays for.
#[test]
fn every_dependency_is_used() {
    let mut faults = vec![];
    for (manifest, folders) in [
        // A test of the whole takes random graphs from the compiler's tests.
        ("Cargo.toml", &["compiler/cli", "compiler/tests", "tests", "examples"][..]),
        ("compiler/Cargo.toml", &["compiler/src", "compiler/tests", "compiler/benches"]),
        ("runtime/Cargo.toml", &["runtime/src", "runtime/tests", "runtime/examples"]),
        ("runtime/plan/Cargo.toml", &["runtime/plan/src", "runtime/plan/tests"]),
        ("tests/software_device/Cargo.toml", &["tests/software_device"]),
        ("tests/xtask/Cargo.toml", &["tests/xtask"]),
    ] {
        let text: String =
            folders.iter().flat_map(|f| files(f, &[".rs"])).map(|p| read(&p)).collect();
        let manifest_text = read(&root().join(manifest));
        let mut section = "";
        for line in manifest_text.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let Some(name) = line.split(['.', ' ', '=']).next().filter(|n| !n.is_empty()) else {
                continue;
            };
            let name = name.replace('-', "_");
            let own = matches!(section, "[dependencies]" | "[dev-dependencies]");
            let used = || {
                text.match_indices(&name).any(|(at, _)| {
                    let whole = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                    whole && [";", "::", "!"].iter().any(|e| text[at + name.len()..].starts_with(e))
                })
            };
            if own && !line.starts_with(['[', '#']) && !used() {
                faults.push(format!("{manifest}: {name}"));
            }
        }
    }
    assert_none(&faults, "Dependencies that no source file names:");
}

#[test]
fn hashed_collections_have_a_fixed_order() {
    let name = ["std::collections::", "Hash"].concat();
    let mut faults = vec![];
    for path in sources() {
        for (number, line) in read(&path).lines().enumerate() {
            if line.contains(&name) {
                faults.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert_none(&faults, "Iteration order must not differ from run to run; use indexmap:");
}

/// A file that is written elsewhere is half written when the disk is full.
#[test]
fn files_are_written_in_one_place() {
    let writes = ["File::create", "fs::write", "File::options", "OpenOptions", "fs::rename"];
    let mut faults = vec![];
    for path in ["compiler/cli", "compiler/src", "runtime/src", "runtime/plan/src"]
        .iter()
        .flat_map(|f| files(f, &[".rs"]))
        .filter(|p| !p.ends_with("runtime/src/files.rs"))
        .filter(|p| !p.components().any(|part| part.as_os_str() == "tests"))
        .filter(|p| !["tests.rs", "malformed.rs"].iter().any(|t| p.to_string_lossy().ends_with(t)))
    {
        let text = read(&path);
        let text = text.split("#[cfg(test)]").next().expect("split gives one");
        for (number, line) in code(text).filter(|(_, l)| writes.iter().any(|w| l.contains(w))) {
            faults.push(format!("{}:{number}: {}", path.display(), line.trim()));
        }
    }
    assert_none(&faults, "`runtime/src/files.rs` writes whole files and lines:");
}

#[test]
fn no_file_names_a_machine() {
    // Split, so that this file passes.
    let names = ["/ro@ot/", "/ho@me/", "/wo@rk/", "/Us@ers/"].map(|n| n.replace('@', ""));
    let mut faults = vec![];
    for path in files(".", &[".rs", ".md", ".toml", ".py", ".sh", ".pir", ".snap", ".json"]) {
        for (number, line) in read(&path).lines().enumerate() {
            if names.iter().any(|n| line.contains(n)) {
                faults.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert_none(&faults, "Paths of one machine:");
}

/// Codes such as `P0102`, written as `prefix` then four digits.
fn codes(text: &str, quote: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for letter in ["P", "R"] {
        let prefix = format!("{quote}{letter}0");
        for (at, _) in text.match_indices(&prefix) {
            let code: String = text[at + quote.len()..].chars().take(5).collect();
            let ends = text[at + quote.len() + code.len()..].starts_with(quote);
            if ends && code[1..].bytes().all(|c| c.is_ascii_digit()) {
                found.insert(code);
            }
        }
    }
    found
}

#[test]
fn every_error_code_is_documented() {
    let mut used = BTreeSet::new();
    for path in files("compiler", &[".rs"]).into_iter().chain(files("runtime", &[".rs"])) {
        let text = read(&path);
        // Tests invent codes.
        let text = text.split("#[cfg(test)]\nmod tests {").next().expect("split gives one");
        if !path.ends_with("tests.rs") {
            used.extend(codes(text, "\""));
        }
    }
    let listed = codes(&read(&root().join("docs/ERRORS.md")), "`");
    assert!(used.len() > 15, "the scan found only {used:?}");
    let rows = read(&root().join("docs/ERRORS.md"));
    let rows = rows.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next());
    let mut rows: Vec<&str> = rows.collect();
    rows.sort_unstable();
    let twice: Vec<_> = rows.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).collect();
    assert!(twice.is_empty(), "docs/ERRORS.md gives two meanings to {twice:?}");
    let missing: Vec<_> = used.difference(&listed).collect();
    assert!(missing.is_empty(), "docs/ERRORS.md lacks {missing:?}");
    let stale: Vec<_> = listed.difference(&used).collect();
    assert!(stale.is_empty(), "docs/ERRORS.md lists codes nobody gives: {stale:?}");
}

#[test]
fn every_recipe_key_is_documented() {
    let source = |file: &str| read(&root().join("compiler/src/frontend/recipe").join(file));
    let reader = source("sections.rs") + &source("loss.rs");
    let book = read(&root().join("docs/RECIPE.md"));
    let mut keys: BTreeSet<&str> = words_after(&reader, ".get(\"").into_iter().collect();
    keys.extend(words_after(&reader, ".need(\""));
    keys.extend(words_after(&reader, "map(&t, \""));
    assert!(keys.len() > 40, "the scan found only {keys:?}");
    let missing: Vec<_> = keys.iter().filter(|k| !book.contains(&format!("`{k}`"))).collect();
    assert!(missing.is_empty(), "docs/RECIPE.md lacks {missing:?}");
}

#[test]
fn every_crate_and_module_says_what_it_is() {
    let faults: Vec<String> = sources()
        .iter()
        .filter(|path| !read(path).starts_with("//!"))
        .map(|path| path.display().to_string())
        .filter(|path| !path.ends_with("tests.rs") && !path.contains("/tests/"))
        .collect();
    assert_none(&faults, "Begin these files with `//!` and what they are for:");
}
