//! Prints the precision plan of a recipe in the form that snapshot tests keep:
//! `cargo run --example snapshot_precision examples/digits/recipe.toml`.
//!
//! In a test of your own project, with the crate `insta`:
//!
//! ```ignore
//! #[test]
//! fn precision_plan() {
//!     let plan = precast_compiler::snapshot::precision("recipe.toml").unwrap_or_else(|e| panic!("{e}"));
//!     insta::assert_snapshot!(plan);
//! }
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(recipe) = std::env::args().nth(1) else {
        eprintln!("usage: snapshot_precision RECIPE");
        return ExitCode::from(2);
    };
    match precast_compiler::snapshot::precision(recipe) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
