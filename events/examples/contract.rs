//! Writes the files under `contract/` from the types. Refuses when a schema breaks what the committed
//! one, or `contract/v1/`, promises to consumers of v1: such a change is a new event type. What was promised
//! under `contract/v1/` it never writes.
//!
//! `cargo run --package events --features contract --example contract`

use std::path::Path;
use std::process::ExitCode;

use events::contract::{breaks, files, promises};

fn main() -> std::io::Result<ExitCode> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contract");
    let files = files();
    let mut broken = false;
    let promises = promises();
    let schemas = files.iter().filter(|(path, _)| path.starts_with("schemas/"));
    for (path, schema) in schemas.chain(&promises) {
        let Ok(committed) = std::fs::read(folder.join(path)) else { continue };
        for line in breaks(&serde_json::from_slice(&committed)?, schema) {
            eprintln!("contract/{path} {line}");
            broken = true;
        }
    }
    if broken {
        eprintln!(
            "nothing written: this breaks consumers of v1. Add an optional field, or a new event type."
        );
        return Ok(ExitCode::FAILURE);
    }
    for (path, content) in files {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(&folder))?;
        std::fs::write(path, format!("{content:#}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
