//! Puts the kernels' sources into the binary: a list of the files in `kernels`, by name.
use std::{env, fs, path::Path};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(&folder).expect("the folder of kernels");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder entry").path()).collect();
    paths.sort();
    let mut text = String::new();
    for (list, extension) in [("HEADERS", "h"), ("SOURCES", "metal")] {
        text += &format!("pub(crate) const {list}: &[Source] = &[\n");
        for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == extension)) {
            println!("cargo::rerun-if-changed={}", path.display());
            let name = path.file_name().expect("a file's name").to_str().expect("an ASCII name");
            text += &format!("    Source {{ name: {name:?}, text: include_str!({path:?}) }},\n");
        }
        text += "];\n";
    }
    let out = env::var("OUT_DIR").expect("set by cargo");
    fs::write(Path::new(&out).join("sources.rs"), text).expect("the list of sources");
}
