//! Compiles the engine and every kernel source as host C++, and the table of the kernels found.
//!
//! Only what changed is compiled: an object's name carries the hash of all that went into it. Sources are compiled once
//! more for every bug that a `planted.diff` beside them has for them.
#![allow(clippy::print_stdout, reason = "what cargo is told")]

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

#[path = "src/source.rs"]
#[allow(dead_code, reason = "shared with the crate's own tests")]
mod source;

#[path = "src/planted.rs"]
mod planted;

#[path = "src/rewrite.rs"]
mod rewrite;

#[path = "src/cuda_source.rs"]
mod cuda_source;

#[path = "src/metal_source.rs"]
#[allow(dead_code, reason = "the checked form is wanted by an example only")]
mod metal_source;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Folders of kernels, from the workspace's: what is tested, and what tests the simulator.
const FOLDERS: &[&str] = &["photon-cuda/kernels", "photon-metal/kernels", "photon-simt/kernels"];

/// Flags of the preprocessing pass, by the language's file extension.
const LANGUAGES: &[(&str, &[&str])] = &[
    ("cu", &["-D__CUDA_ARCH__=890", "-D__CUDACC__", "-I", "photon-cuda/kernels"]),
    (
        "metal",
        &[
            "-D__METAL__",
            "-D__METAL_VERSION__=310",
            "-DPHOTON_BFLOAT=1",
            "-I",
            "photon-simt/shim/metal",
        ],
    ),
];

/// How a source begins that nothing here can run; the reason follows.
const NOT_SIMULATED: &str = "// Not simulated:";

/// A C++ file to compile.
struct Unit {
    name: String,
    path: PathBuf,
    /// Of everything that goes into the object.
    hash: u64,
}

/// What was found in the sources.
#[derive(Default)]
struct Found {
    units: Vec<Unit>,
    /// Names of the tables: of one source each, with or without a bug.
    tables: Vec<String>,
    /// Where every kernel is, by language and name.
    kernels: BTreeMap<(String, String), String>,
}

struct Build {
    root: PathBuf,
    out: PathBuf,
    shim: PathBuf,
    shim_hash: u64,
    compiler: cc::Tool,
}

fn main() {
    if let Err(error) = run() {
        println!("cargo::error=photon-simt: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest.parent().ok_or("no workspace")?.to_owned();
    let shim = manifest.join("shim");
    println!("cargo::rerun-if-changed={}", shim.display());
    println!("cargo::rerun-if-changed=build.rs");
    for module in ["source", "planted", "rewrite", "cuda_source", "metal_source"] {
        println!("cargo::rerun-if-changed=src/{module}.rs");
    }
    let compiler = configured().try_get_compiler()?;
    let mut texts = Vec::new();
    for file in files(&shim, "")? {
        texts.push(fs::read(file)?);
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let build = Build { root, out, shim, shim_hash: hash(&texts), compiler };
    let mut found = Found::default();
    for name in ["engine", "land", "warp"] {
        let path = build.shim.join(format!("simt/{name}.cpp"));
        found.units.push(Unit { name: name.into(), path, hash: build.shim_hash });
    }
    for folder in FOLDERS {
        let path = build.root.join(folder);
        println!("cargo::rerun-if-changed={}", path.display());
        if path.is_dir() {
            build.folder(&path, &mut found)?;
        }
    }
    found.units.push(build.write("registry", &registry(&found.tables))?);
    build.compile(&found.units)
}

/// The compiler and what all units are compiled with.
fn configured() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).warnings(false).debug(false);
    // Line tables, for the places of faults; the same results with and without fused instructions.
    build
        .flag("-g1")
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-fno-exceptions");
    // A large frame touches its pages in order, so that it meets the page that ends the stack.
    build.flag("-fstack-clash-protection");
    build.flag("-ftls-model=initial-exec").flag("-Wno-unknown-pragmas").flag("-Wno-attributes");
    #[cfg(target_arch = "x86_64")]
    if env::var("TARGET") == env::var("HOST")
        && std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c")
    {
        build.flag("-mavx2").flag("-mfma").flag("-mf16c");
    }
    build
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Files below a folder whose names end so, in order.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if extension.is_empty() || path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Lists of the tables, those of Metal, whose names say so, apart.
fn registry(tables: &[String]) -> String {
    let (metal, cuda): (Vec<_>, Vec<_>) = tables.iter().partition(|t| t.starts_with("metal_"));
    let mut out = "#include \"simt/engine.hpp\"\n".to_owned();
    for (list, tables) in [("simt_tables", cuda), ("simt_metal_tables", metal)] {
        for table in &tables {
            out += &format!("extern \"C\" const simt::Table simt_table_{table};\n");
        }
        let listed: String = tables.iter().map(|t| format!("&simt_table_{t}, ")).collect();
        out += &format!("extern \"C\" const simt::Table* const {list}[];\n");
        out += &format!("const simt::Table* const {list}[] = {{{listed}nullptr}};\n");
    }
    out
}

impl Found {
    /// Notes where a kernel is. Launches know it by its name alone.
    fn kernel(&mut self, language: &str, name: String, place: String) -> Result<()> {
        let key = (language.to_owned(), name);
        match self.kernels.get(&key) {
            Some(other) => Err(format!("{other} and {place}: two kernels `{}`", key.1).into()),
            None => {
                self.kernels.insert(key, place);
                Ok(())
            }
        }
    }
}

impl Build {
    /// All sources of a folder, and those with bugs planted.
    fn folder(&self, folder: &Path, found: &mut Found) -> Result<()> {
        let planted = folder.join("planted.diff");
        let text = if planted.exists() { fs::read_to_string(&planted)? } else { String::new() };
        let mut bugs = planted::bugs(&text).map_err(|e| format!("{}: {e}", planted.display()))?;
        for (extension, flags) in LANGUAGES {
            for file in files(folder, extension)? {
                let text = fs::read_to_string(&file)?;
                if text.starts_with(NOT_SIMULATED) {
                    continue;
                }
                self.kernels(&file, "", flags, &text, found)?;
                for bug in bugs.extract_if(.., |bug| file.ends_with(&bug.file)) {
                    let text = bug.plant(&text)?;
                    self.kernels(&file, &bug.name, flags, &text, found)?;
                }
            }
        }
        match bugs.first() {
            Some(bug) => Err(format!("{}: there is no {}", planted.display(), bug.file).into()),
            None => Ok(()),
        }
    }

    /// The kernels of one source, called `name!bug` if it has one.
    fn kernels(
        &self,
        file: &Path,
        bug: &str,
        flags: &[&str],
        text: &str,
        found: &mut Found,
    ) -> Result<()> {
        let stem = file.file_stem().and_then(|s| s.to_str()).ok_or("a file without name")?;
        let (stem, suffix) = match bug {
            "" => (stem.to_owned(), String::new()),
            bug => (format!("{stem}__{bug}"), format!("!{bug}")),
        };
        let preprocessed = self.preprocess(file, flags, text)?;
        let is_metal = file.extension().is_some_and(|e| e == "metal");
        let (table, text, kernels): (_, _, Vec<_>) = if is_metal {
            let unit = metal_source::translate(&preprocessed)?;
            let place = |k: &metal_source::Kernel| (k.name.clone(), k.place.clone());
            let kernels = unit.kernels.iter().map(place).collect();
            (format!("metal_{stem}"), metal_source::unit(&stem, &suffix, &unit), kernels)
        } else {
            let unit = cuda_source::translate(&preprocessed)?;
            let place = |k: &cuda_source::Kernel| (k.name.clone(), (k.file.clone(), k.line));
            let kernels = unit.kernels.iter().map(place).collect();
            (stem.clone(), cuda_source::unit(&stem, &suffix, &unit), kernels)
        };
        if found.tables.contains(&table) {
            return Err(format!("{}: another source has this name", file.display()).into());
        }
        let language = if is_metal { "metal" } else { "cuda" };
        for (name, (file, line)) in kernels {
            found.kernel(language, format!("{name}{suffix}"), format!("{file}:{line}"))?;
        }
        found.units.push(self.write(&table, &text)?);
        found.tables.push(table);
        Ok(())
    }

    /// The source without its macros, with line markers relative to the workspace.
    fn preprocess(&self, file: &Path, flags: &[&str], text: &str) -> Result<String> {
        let relative = file.strip_prefix(&self.root)?;
        let input = self.out.join("input");
        fs::write(&input, format!("# 1 \"{}\"\n{text}\n", relative.display()))?;
        let mut command = Command::new(self.compiler.path());
        command.current_dir(&self.root).args(["-E", "-x", "c++", "-std=c++20"]);
        command.args(["-DPHOTON_SIM", "-DPHOTON_SIM_PREPROCESS", "-I", "photon-simt/shim"]);
        command.arg("-I").arg(relative.parent().unwrap_or(relative)).args(flags).arg(&input);
        let output = command.output().map_err(|e| format!("{:?}: {e}", self.compiler.path()))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} cannot be preprocessed:\n{message}", relative.display()).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn write(&self, name: &str, text: &str) -> Result<Unit> {
        let path = self.out.join(format!("{name}.cpp"));
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            fs::write(&path, text)?;
        }
        Ok(Unit { name: name.to_owned(), path, hash: hash(&(text, self.shim_hash)) })
    }

    /// Objects that are not there yet, as many at once as there are processors; then the library.
    fn compile(&self, units: &[Unit]) -> Result<()> {
        let flags: Vec<_> = self.compiler.args().to_vec();
        let objects: BTreeMap<PathBuf, &Unit> = units
            .iter()
            .map(|unit| {
                let key = hash(&(unit.hash, &flags));
                (self.out.join(format!("{}-{key:016x}.o", unit.name)), unit)
            })
            .collect();
        for old in files(&self.out, "o")? {
            if !objects.contains_key(&old) {
                fs::remove_file(old)?;
            }
        }
        let missing: Vec<_> = objects.iter().filter(|(object, _)| !object.exists()).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism()?.get().min(missing.len());
        let failures: Vec<String> = std::thread::scope(|scope| {
            let work = || {
                let mut failures = Vec::new();
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some((object, unit)) = missing.get(at) else { return failures };
                    failures.extend(self.compile_one(unit, object).err().map(|e| e.to_string()));
                }
            };
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|w| w.join().expect("a worker panicked")).collect()
        });
        if !failures.is_empty() {
            return Err(failures.join("\n").into());
        }
        let mut library = configured();
        for object in objects.keys() {
            library.object(object);
        }
        library.try_compile("photon_simt_kernels")?;
        Ok(())
    }

    fn compile_one(&self, unit: &Unit, object: &Path) -> Result<()> {
        let mut command = self.compiler.to_command();
        // The engine's own arithmetic is worth more: it multiplies the matrices.
        if unit.name == "warp" {
            command.arg("-O3");
        }
        command.current_dir(&self.root);
        command.arg(format!("-ffile-prefix-map={}=.", self.root.display()));
        command.arg("-I").arg(&self.shim).arg("-c").arg(&unit.path).arg("-o").arg(object);
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} does not compile:\n{message}", unit.name).into())
    }
}
