//! Lists the public items of a crate that rustdoc described in JSON, a line each. `cargo xtask public-api` runs it.
use std::{error::Error, io::Write};

fn main() -> Result<(), Box<dyn Error>> {
    let described = std::env::args_os().nth(1).ok_or("a JSON file of rustdoc is needed")?;
    // What every type gets by itself or by `derive` would be most of the list and says little.
    let items = public_api::Builder::from_rustdoc_json(described)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    let mut out = std::io::stdout().lock();
    for item in items.items() {
        writeln!(out, "{item}")?;
    }
    Ok(())
}
