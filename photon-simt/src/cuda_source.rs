//! From a preprocessed `.cu` to host C++ and its part of the launch table.
//!
//! Rewritten: a kernel's `extern "C" __global__` (it becomes a function of the file's namespace) and every
//! `__shared__` array (it becomes a reference into the simulator's arena). The rest is macros of `shim/simt/cuda.hpp`.
//! Refused, with file and line: kernels spelled otherwise, assembly, shared memory that the arena cannot hold.
use std::{fmt::Write, ops::Range};

use crate::{
    rewrite::{Edits, apply, arena, fields},
    source::{Kind, Result, Source},
};

/// What a table says of a kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) args: String,
    /// Type and name of every field of the argument struct, in order.
    pub(crate) fields: Vec<(String, String)>,
    /// The expression in `__launch_bounds__`, first argument.
    pub(crate) launch_bounds: Option<String>,
    pub(crate) file: String,
    pub(crate) line: u32,
}

/// Host C++ of one source: its body, and the kernels in it.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) body: String,
    pub(crate) kernels: Vec<Kernel>,
}

/// Reads a preprocessed source.
pub(crate) fn translate(preprocessed: &str) -> Result<Unit> {
    let source = Source::new(preprocessed)?;
    let mut edits = Edits::new();
    let mut kernels = Vec::new();
    for at in 0..source.tokens.len() {
        match source.tokens[at].text.as_str() {
            "__global__" => kernels.push(kernel(&source, at, &mut edits)?),
            "__shared__" => shared(&source, at, &mut edits)?,
            "asm" | "__asm__" => {
                return Err(format!("{}: assembly; it belongs into ptx.cuh", source.place(at)));
            }
            _ => {}
        }
    }
    Ok(Unit { body: apply(&source, &edits), kernels: kernels.into_iter().flatten().collect() })
}

/// `extern "C" __global__ void __launch_bounds__(N) name(const Args a) { ... }`, or a declaration of it.
fn kernel(source: &Source, global: usize, edits: &mut Edits) -> Result<Option<Kernel>> {
    let place = source.place(global);
    let c = source.before(global).filter(|&i| source.tokens[i].text == "\"C\"");
    let linkage = c.and_then(|c| source.before(c)).filter(|&i| source.is(i, "extern"));
    let Some(linkage) = linkage else {
        return Err(format!("{place}: a kernel is spelled `extern \"C\" __global__ void ...`"));
    };
    let (mut at, mut launch_bounds) = (source.after(global), None);
    while !source.is(source.after(at), "(") || source.is(at, "__launch_bounds__") {
        if source.is(at, "__launch_bounds__") {
            let open = source.after(at);
            let close = source.closing(open)?;
            let first = source.split(open + 1..close, ",")?.into_iter().next();
            launch_bounds = first.map(|range| source.text(range));
            at = close;
        }
        at = source.after(at);
        if at >= source.tokens.len() {
            return Err(format!("{place}: a kernel without parameters"));
        }
    }
    let name = source.word(at)?.to_owned();
    let open = source.after(at);
    let close = source.closing(open)?;
    edits.insert(linkage, (global + 1, "static".into()));
    if source.is(source.after(close), ";") {
        return Ok(None);
    }
    let parameters = source.split(open + 1..close, ",")?;
    let words = |range: &Range<usize>| -> Vec<String> {
        let words = source.tokens[range.clone()].iter().filter(|t| t.kind == Kind::Word);
        words.map(|t| t.text.clone()).filter(|t| t != "const" && t != "__grid_constant__").collect()
    };
    let args = match parameters.as_slice() {
        [one] if words(one).len() == 2 => words(one).swap_remove(0),
        _ => return Err(format!("{place}: {name} takes one struct by value, `const Args a`")),
    };
    let fields = fields(source, &args, &place)?;
    let line = source.tokens[global].line;
    let file = source.files[source.tokens[global].file].clone();
    Ok(Some(Kernel { name, args, fields, launch_bounds, file, line }))
}

/// `alignas(16) __shared__ T a[N], b[M];`: references to what the arena has for each.
fn shared(source: &Source, at: usize, edits: &mut Edits) -> Result<()> {
    let place = source.place(at);
    let mut begin = at;
    let mut align = "1".to_owned();
    // Back over `static` and `alignas(...)`, which may also stand behind.
    while let Some(before) = source.before(begin) {
        if source.is(before, "static") {
            begin = before;
        } else if source.is(before, ")") {
            let open =
                (0..before).rev().find(|&i| source.is(i, "(") && source.closing(i) == Ok(before));
            let word = open.and_then(|open| source.before(open));
            let (Some(open), Some(word)) = (open, word) else { break };
            if !source.is(word, "alignas") && !source.is(word, "__align__") {
                break;
            }
            align = source.text(open + 1..before);
            begin = word;
        } else {
            break;
        }
    }
    if source.before(begin).is_some_and(|i| source.is(i, "extern")) {
        return Err(format!("{place}: dynamic shared memory is `DYNAMIC_SHARED(T, name);`"));
    }
    let end = source.find(at, ";")?;
    let mut first = source.after(at);
    while source.is(first, "alignas") || source.is(first, "__align__") {
        let open = source.after(first);
        let close = source.closing(open)?;
        align = source.text(open + 1..close);
        first = source.after(close);
    }
    let out = arena(source, first..end, &align)?;
    edits.insert(begin, (end + 1, out));
    Ok(())
}

/// The whole translation unit: the source in a namespace of its own, and its table `simt_table_<stem>`.
pub(crate) fn unit(stem: &str, suffix: &str, unit: &Unit) -> String {
    let mut out = format!(
        "#include \"simt/cuda.hpp\"\n#include \"simt/ptx.hpp\"\n#include <cstddef>\nnamespace cuda_{stem} {{\n{}\n# 1 \"table of {stem}\"\n",
        unit.body
    );
    let mut table = String::new();
    for kernel in &unit.kernels {
        let Kernel { name, args, fields, launch_bounds, file, line } = kernel;
        let bounds = launch_bounds.as_deref().unwrap_or("0");
        let _ = writeln!(
            out,
            "static_assert(std::is_trivially_copyable_v<{args}>, \"{args} travels as bytes\");"
        );
        let _ = write!(out, "static constexpr ::simt::Field simt_fields_{name}[] = {{");
        for (kind, field) in fields {
            let _ = write!(
                out,
                "\n  {{\"{field}\", \"{kind}\", offsetof({args}, {field}), sizeof({args}::{field})}},"
            );
        }
        let _ = writeln!(
            out,
            "\n  {{nullptr, nullptr, 0, 0}}}};\nstatic void simt_run_{name}(const void* p) {{ {args} a; memcpy(&a, p, sizeof a); {name}(a); }}"
        );
        let _ = writeln!(
            table,
            "  {{\"{name}{suffix}\", \"{file}\", {line}, \"{args}\", sizeof({args}), {}, simt_fields_{name}, 0, nullptr, {bounds}, simt_run_{name}}},",
            fields.len()
        );
    }
    let count = unit.kernels.len();
    let _ = write!(
        out,
        "static const ::simt::Kernel simt_kernels[] = {{\n{table}  {{}}}};\n}}\n\
         extern \"C\" const ::simt::Table simt_table_{stem};\n\
         const ::simt::Table simt_table_{stem} = {{cuda_{stem}::simt_kernels, {count}}};\n"
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        translate(text).unwrap_err()
    }

    #[test]
    fn kernels_and_their_fields_are_found() {
        let text = "# 1 \"k.cu\"\nstruct alignas(8) AArgs { const float* x; float* out; int n, m; unsigned pad[2]; };\n\
                    template <int N> __device__ void f(const AArgs& a) {}\n\
                    extern \"C\" __global__ void __launch_bounds__(2 * 64, 2) a(const AArgs a) { f<3>(a); }\n";
        let unit = translate(text).unwrap();
        let [kernel] = unit.kernels.as_slice() else { panic!("{unit:?}") };
        assert_eq!((&*kernel.name, &*kernel.args, kernel.line), ("a", "AArgs", 3));
        assert_eq!(kernel.launch_bounds.as_deref(), Some("2 * 64"));
        let fields: Vec<String> = kernel.fields.iter().map(|(t, n)| format!("{n}: {t}")).collect();
        assert_eq!(
            fields,
            ["x: const float*", "out: float*", "n: int", "m: int", "pad: unsigned[2]"]
        );
        assert!(unit.body.contains("static void __launch_bounds__(2 * 64, 2) a("), "{}", unit.body);
    }

    #[test]
    fn shared_arrays_become_references_on_the_same_lines() {
        let text = "void f() {\n  alignas(16) __shared__ bf16 x[2][A > B\n ? 1 : 2], y[3];\n  __shared__ S<1, 2> z;\n}";
        let body = translate(text).unwrap().body;
        assert!(body.contains("using simt_type_x = bf16 [2][A > B ? 1 : 2];"), "{body}");
        assert!(body.contains("simt_tag_x, (16), simt_type_x>(\"x\")"), "{body}");
        assert!(body.contains("using simt_type_y = bf16 [3];"), "{body}");
        assert!(body.contains("using simt_type_z = S<1, 2> ;"), "{body}");
        assert_eq!(body.lines().count(), text.lines().count());
    }

    #[test]
    fn a_unit_has_a_namespace_and_a_table_of_its_own() {
        let text =
            "# 1 \"k.cu\"\nstruct A { int n; }; extern \"C\" __global__ void a(const A a) {}";
        let unit = unit("k", "!bug", &translate(text).unwrap());
        assert!(unit.contains("namespace cuda_k {"), "{unit}");
        assert!(unit.contains("{\"n\", \"int\", offsetof(A, n), sizeof(A::n)}"), "{unit}");
        let entry = "{\"a!bug\", \"k.cu\", 1, \"A\", sizeof(A), 1, simt_fields_a, 0, nullptr, 0, simt_run_a},";
        assert!(unit.contains(entry), "{unit}");
        assert!(unit.contains("simt_table_k = {cuda_k::simt_kernels, 1};"), "{unit}");
    }

    #[test]
    fn what_is_spelled_otherwise_is_refused_with_its_place() {
        let at = "# 1 \"k.cu\"\n";
        let kernel = error(&format!("{at}__global__ void a(const A a) {{}}"));
        assert_eq!(kernel, "k.cu:1: a kernel is spelled `extern \"C\" __global__ void ...`");
        let args = error(&format!("{at}\nextern \"C\" __global__ void a(int x, int y) {{}}"));
        assert_eq!(args, "k.cu:2: a takes one struct by value, `const Args a`");
        let dynamic = error(&format!("{at}extern __shared__ float x[];"));
        assert_eq!(dynamic, "k.cu:1: dynamic shared memory is `DYNAMIC_SHARED(T, name);`");
        let assembly = error(&format!("{at}void f() {{ asm(\"nop\"); }}"));
        assert_eq!(assembly, "k.cu:1: assembly; it belongs into ptx.cuh");
        let method = error(&format!(
            "{at}struct A {{ int f(); }}; extern \"C\" __global__ void a(const A a) {{}}"
        ));
        assert_eq!(method, "k.cu:1: A has more than fields, and travels as bytes");
    }
}
