//! From a preprocessed `.metal` to host C++ and its part of the launch table.
//!
//! Rewritten: words of address spaces (gone, or `const`), `threadgroup` arrays (references into the simulator's arena),
//! function constants (read from the launch), kernels and their instances by `[[host_name]]` (plain functions). Every
//! parameter of a kernel says what it is bound to; which buffer is which comes out as a table.
use std::{collections::BTreeMap, fmt::Write, ops::Range};

use crate::{
    rewrite::{Edits, apply, arena, declarator, fields},
    source::{Kind, Result, Source},
};

/// A parameter of a kernel, or a function constant: its name, type, and C++'s word for what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) bound: &'static str,
    pub(crate) index: u32,
}

/// A struct that a kernel takes: its name; type and name of every field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) name: String,
    pub(crate) fields: Vec<(String, String)>,
}

/// A kernel that can be launched: a function, or an instance of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// The function, as C++ names it.
    pub(crate) function: String,
    pub(crate) parameters: Vec<Parameter>,
    /// The struct at buffer 0 and its fields, if the first parameter is `constant Args& a [[buffer(0)]]`.
    pub(crate) args: Option<Args>,
    pub(crate) max_threads: Option<String>,
    /// Of a template, what stands between its first angle brackets.
    pub(crate) template: Option<String>,
    pub(crate) place: (String, u32),
}

/// Host C++ of one source: its body, the kernels and the function constants in it.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) body: String,
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) constants: Vec<Parameter>,
}

/// Attributes of parameters that are about the thread.
const BUILT_IN: &[(&str, &str)] = &[
    ("thread_position_in_grid", "ThreadPositionInGrid"),
    ("threadgroup_position_in_grid", "ThreadgroupPositionInGrid"),
    ("thread_position_in_threadgroup", "ThreadPositionInThreadgroup"),
    ("thread_index_in_threadgroup", "ThreadIndexInThreadgroup"),
    ("threads_per_threadgroup", "ThreadsPerThreadgroup"),
    ("threadgroups_per_grid", "ThreadgroupsPerGrid"),
    ("threads_per_grid", "ThreadsPerGrid"),
    ("thread_index_in_simdgroup", "ThreadIndexInSimdgroup"),
    ("simdgroup_index_in_threadgroup", "SimdgroupIndexInThreadgroup"),
    ("threads_per_simdgroup", "ThreadsPerSimdgroup"),
    ("simdgroups_per_threadgroup", "SimdgroupsPerThreadgroup"),
];

/// Reads a preprocessed source.
pub(crate) fn translate(preprocessed: &str) -> Result<Unit> {
    let source = Source::new(preprocessed)?;
    let mut reader = Reader {
        source: &source,
        edits: Edits::new(),
        functions: BTreeMap::new(),
        instances: Vec::new(),
        constants: Vec::new(),
    };
    let mut at = 0;
    while at < source.tokens.len() {
        at = reader.token(at)?;
    }
    let Reader { edits, functions, instances, constants, .. } = reader;
    let mut kernels = Vec::new();
    let templates: Vec<&str> = instances.iter().map(|(_, f, _)| f.as_str()).collect();
    for kernel in functions.values() {
        if !templates.contains(&kernel.name.as_str()) {
            kernels.push(kernel.clone());
        }
    }
    for (name, function, arguments) in &instances {
        let of = functions.get(function);
        let of = of.ok_or_else(|| format!("instance {name} of {function}, which is no kernel"))?;
        let function = format!("{function}{arguments}");
        kernels.push(Kernel { name: name.clone(), function, ..of.clone() });
    }
    Ok(Unit { body: apply(&source, &edits), kernels, constants })
}

/// The source as C++ for OpenCL, to have its address spaces checked: attributes gone, kernels plain functions, threadgroup
/// arrays references to nowhere, which a function that is no kernel may have.
pub(crate) fn checked(preprocessed: &str) -> Result<String> {
    let source = Source::new(preprocessed)?;
    let mut edits = Edits::new();
    let mut reader = Reader {
        source: &source,
        edits: Edits::new(),
        functions: BTreeMap::new(),
        instances: Vec::new(),
        constants: Vec::new(),
    };
    let mut at = 0;
    while at < source.tokens.len() {
        let mut next = at + 1;
        if source.is(at, "[[") {
            next = source.closing(at)? + 1;
            edits.insert(at, (next, String::new()));
        } else if source.is(at, "kernel") {
            edits.insert(at, (next, String::new()));
        } else if source.is(at, "threadgroup") && reader.is_array(at) {
            next = source.find(at, ";")? + 1;
            let mut text = String::new();
            let mut of_all = String::new();
            for (i, part) in source.split(source.after(at)..next - 1, ",")?.into_iter().enumerate()
            {
                let (kind, name, dimensions) = declarator(&source, part)?;
                if i == 0 {
                    of_all = kind;
                }
                let _ = write!(
                    text,
                    "using simt_type_{name} = {of_all} {dimensions}; threadgroup simt_type_{name}& {name} = \
                     *(threadgroup simt_type_{name}*)0;"
                );
            }
            edits.insert(at, (next, text));
        } else if source.is(at, "constant") && reader.constant(at)? > at + 1 {
            let constant = reader.constants.last().expect("just read");
            next = source.find(at, ";")? + 1;
            edits.insert(at, (next, format!("constant {} {} = 0;", constant.kind, constant.name)));
        }
        at = next;
    }
    Ok(apply(&source, &edits))
}

struct Reader<'a> {
    source: &'a Source,
    edits: Edits,
    functions: BTreeMap<String, Kernel>,
    /// Host name, template, arguments in angle brackets.
    instances: Vec<(String, String, String)>,
    constants: Vec<Parameter>,
}

impl Reader<'_> {
    /// Handles what begins at `at`; gives where to go on.
    fn token(&mut self, at: usize) -> Result<usize> {
        let source = self.source;
        if source.tokens[at].kind != Kind::Word {
            return Ok(at + 1);
        }
        match source.tokens[at].text.as_str() {
            "template" if source.is(source.after(at), "[[") => self.instance(at),
            "kernel" => self.kernel(at),
            "constant" => self.constant(at),
            "threadgroup" if self.is_array(at) => {
                let end = source.find(at, ";")?;
                let text = arena(source, source.after(at)..end, "1")?;
                self.edits.insert(at, (end + 1, text));
                Ok(end + 1)
            }
            "device" | "thread" | "threadgroup" => {
                self.edits.insert(at, (at + 1, String::new()));
                Ok(at + 1)
            }
            _ => Ok(at + 1),
        }
    }

    /// A declaration of threadgroup memory, not of a pointer or reference to some.
    fn is_array(&self, at: usize) -> bool {
        let source = self.source;
        let begins =
            source.before(at).is_none_or(|b| [";", "{", "}"].iter().any(|mark| source.is(b, mark)));
        let end = (at..source.tokens.len())
            .find(|&i| [";", "=", "(", "["].iter().any(|m| source.is(i, m)));
        let pointer = |i: usize| source.is(i, "*") || source.is(i, "&");
        begins && end.is_some_and(|end| !source.is(end, "(") && !(at..end).any(pointer))
    }

    /// `constant T name [[function_constant(3)]];`, or the word.
    fn constant(&mut self, at: usize) -> Result<usize> {
        let source = self.source;
        let end = source.find(at, ";").unwrap_or(at);
        let attribute = (at..end).find(|&i| source.is(i, "function_constant"));
        let opens = attribute.and_then(|i| source.before(i)).filter(|&i| source.is(i, "[["));
        let in_parameters = (at..end)
            .any(|i| source.is(i, "{") || source.is(i, ")") && attribute.is_none_or(|a| i < a));
        if let (Some(attribute), Some(opens), false) = (attribute, opens, in_parameters) {
            let name = source.before(opens).unwrap_or(opens);
            let index = self.number(attribute)?;
            let (name_text, kind) =
                (source.word(name)?.to_owned(), source.text(source.after(at)..name));
            let text = format!(
                "static const ::simt::msl::FunctionConstant<{kind}, {index}> {name_text}{{\"{name_text}\"}};"
            );
            self.edits.insert(at, (end + 1, text));
            self.constants.push(Parameter { name: name_text, kind, bound: "Constant", index });
            return Ok(end + 1);
        }
        let next = source.after(at);
        let beside =
            source.before(at).is_some_and(|b| source.is(b, "const")) || source.is(next, "const");
        let word = if beside || source.is(next, "constexpr") { "" } else { "const" };
        self.edits.insert(at, (at + 1, word.into()));
        Ok(at + 1)
    }

    /// The number in `attribute(3)`.
    fn number(&self, attribute: usize) -> Result<u32> {
        let open = self.source.after(attribute);
        let text = self.source.text(open + 1..self.source.closing(open)?);
        let place = self.source.place(attribute);
        text.parse().map_err(|_| format!("{place}: `{text}` should be a number"))
    }

    /// `kernel void f(...)` or `[[kernel, max_total_threads_per_threadgroup(n)]] void f(...)`.
    fn kernel(&mut self, at: usize) -> Result<usize> {
        let source = self.source;
        let place = source.place(at);
        let (mut begin, mut next, mut max_threads) = (at, source.after(at), None);
        let mut read_attributes = |range: Range<usize>| -> Result<()> {
            for part in source.split(range, ",")? {
                let word = source.skip(part.start);
                if source.is(word, "max_total_threads_per_threadgroup") {
                    let open = source.after(word);
                    max_threads = Some(source.text(open + 1..source.closing(open)?));
                }
            }
            Ok(())
        };
        if let Some(open) = source.before(at).filter(|&i| source.is(i, "[[")) {
            let close = source.closing(open)?;
            read_attributes(open + 1..close)?;
            (begin, next) = (open, source.after(close));
        }
        while source.is(next, "[[") {
            let close = source.closing(next)?;
            read_attributes(next + 1..close)?;
            next = source.after(close);
        }
        if !source.is(next, "void") {
            return Err(format!("{place}: a kernel is `kernel void name(...)`"));
        }
        let name_at = source.after(next);
        let name = source.word(name_at)?.to_owned();
        let open = source.after(name_at);
        let close = source.closing(open)?;
        let mut parameters = Vec::new();
        for parameter in source.split(open + 1..close, ",")? {
            parameters.push(self.parameter(parameter, &name)?);
        }
        self.edits.insert(begin, (next, "static ".into()));
        let file = source.files[source.tokens[at].file].clone();
        let place = (file, source.tokens[at].line);
        let template = self.template_before(begin);
        let function = name.clone();
        let args = self.args(&parameters, at)?;
        self.functions.insert(
            name.clone(),
            Kernel { name, function, parameters, args, max_threads, template, place },
        );
        Ok(next)
    }

    /// The struct that a kernel takes at buffer 0, if that is where its first parameter is.
    fn args(&self, parameters: &[Parameter], at: usize) -> Result<Option<Args>> {
        let Some(Parameter { kind, bound: "Buffer", index: 0, .. }) = parameters.first() else {
            return Ok(None);
        };
        let name = kind.strip_prefix("constant ").and_then(|kind| kind.strip_suffix('&'));
        let Some(name) = name.map(str::trim) else { return Ok(None) };
        let fields = fields(self.source, name, &self.source.place(at))?;
        Ok(Some(Args { name: name.to_owned(), fields }))
    }

    /// The parameters of the `template <...>` that ends right before.
    fn template_before(&self, at: usize) -> Option<String> {
        let source = self.source;
        let close = source.before(at).filter(|&i| source.is(i, ">"))?;
        let word = (0..close).rev().find(|&i| source.is(i, "template"))?;
        Some(source.text(source.after(word) + 1..close))
    }

    fn parameter(&mut self, range: Range<usize>, kernel: &str) -> Result<Parameter> {
        let source = self.source;
        let place = source.place(source.skip(range.start));
        let open = range.clone().find(|&i| source.is(i, "[["));
        let open =
            open.ok_or_else(|| format!("{place}: a parameter of {kernel} without [[attribute]]"))?;
        let name_at = source.before(open).unwrap_or(open);
        let name = source.word(name_at)?.to_owned();
        let kind = source.text(range.start..name_at);
        let close = source.closing(open)?;
        let (mut bound, mut index, mut optional) = (None, 0, false);
        for part in source.split(open + 1..close, ",")? {
            let word = source.skip(part.start);
            match source.word(word)? {
                "buffer" => (bound, index) = (Some("Buffer"), self.number(word)?),
                "threadgroup" => (bound, index) = (Some("Threadgroup"), self.number(word)?),
                "function_constant" => optional = true,
                other => {
                    let known = BUILT_IN.iter().find(|(name, _)| *name == other);
                    let known =
                        known.ok_or_else(|| format!("{place}: [[{other}]] is not known"))?;
                    bound = Some(known.1);
                }
            }
        }
        self.edits.insert(open, (close + 1, String::new()));
        let bound = match bound {
            Some("Buffer") if index > 30 => {
                return Err(format!("{place}: buffer({index}), of 0 to 30"));
            }
            Some("Buffer") if optional => "OptionalBuffer",
            Some(bound) => bound,
            None => return Err(format!("{place}: {name} is bound to nothing")),
        };
        Ok(Parameter { name, kind, bound, index })
    }

    /// `template [[host_name("x")]] [[kernel]] void f<half, 64>(...);`, or with `decltype(f<half, 64>) f<half, 64>;`.
    fn instance(&mut self, at: usize) -> Result<usize> {
        let source = self.source;
        let end = source.find(at, ";")?;
        let place = source.place(at);
        let open = source.after(at);
        let close = source.closing(open)?;
        let host_name = (open..close).find(|&i| source.tokens[i].kind == Kind::Literal);
        let host_name =
            host_name.ok_or_else(|| format!("{place}: an instance without host_name"))?;
        let name = source.tokens[host_name].text.trim_matches('"').to_owned();
        // The template's name is the word before the first `<` outside of brackets.
        let mut angle = close + 1;
        while !source.is(angle, "<") {
            if angle >= end {
                return Err(format!("{place}: an instance without arguments"));
            }
            let opens = ["(", "[["].iter().any(|mark| source.is(angle, mark));
            angle = if opens { source.closing(angle)? + 1 } else { angle + 1 };
        }
        let function =
            source.before(angle).map(|i| source.word(i)).transpose()?.unwrap_or_default();
        let (mut depth, mut last) = (0, angle);
        for i in angle..end {
            if source.is(i, "<") {
                depth += 1;
            } else if source.is(i, ">") {
                depth -= 1;
            }
            if depth == 0 {
                last = i;
                break;
            }
        }
        let arguments = source.text(angle..last + 1);
        self.instances.push((name, function.to_owned(), arguments));
        self.edits.insert(at, (end + 1, String::new()));
        Ok(end + 1)
    }
}

/// Writes the table of a struct's fields; what the kernel's entry says of the struct.
fn fields_of(out: &mut String, i: usize, Args { name, fields }: &Args) -> String {
    let _ = write!(out, "static constexpr ::simt::Field simt_fields_{i}[] = {{");
    for (kind, field) in fields {
        let _ = write!(
            out,
            "\n  {{\"{field}\", \"{kind}\", offsetof({name}, {field}), sizeof({name}::{field})}},"
        );
    }
    let _ = writeln!(out, "\n  {{}}}};");
    format!("\"{name}\", sizeof({name}), {}, simt_fields_{i}", fields.len())
}

/// The whole translation unit: the source in a namespace of its own, and its table `simt_table_<stem>`.
pub(crate) fn unit(stem: &str, suffix: &str, unit: &Unit) -> String {
    let mut out = format!(
        "#include \"simt/metal.hpp\"\nnamespace metal_{stem} {{\nusing namespace metal;\n{}\n# 1 \"table of {stem}\"\n",
        unit.body
    );
    let mut table = String::new();
    for (i, kernel) in unit.kernels.iter().enumerate() {
        let Kernel { name, function, parameters, args, max_threads, template, place } = kernel;
        let (file, line) = place;
        let _ = write!(out, "static constexpr ::simt::msl::Parameter simt_parameters_{i}[] = {{");
        for Parameter { name, bound, index, .. } in parameters {
            let _ = write!(out, "\n  {{\"{name}\", ::simt::msl::Source::{bound}, {index}}},");
        }
        let _ = write!(
            out,
            "\n  {{}}}};\nstatic void simt_run_{i}(const void*) {{ ::simt::msl::call({function}, simt_parameters_{i}); }}\n\
             static constexpr ::simt::Field simt_bindings_{i}[] = {{"
        );
        let listed = parameters
            .iter()
            .filter(|p| ["Buffer", "OptionalBuffer", "Threadgroup"].contains(&p.bound));
        let listed: Vec<_> = listed.chain(&unit.constants).collect();
        for Parameter { name, kind, bound, index } in &listed {
            let _ = write!(
                out,
                "\n  {{\"{name}\", \"{kind}\", {index}, static_cast<uint32_t>(::simt::msl::Source::{bound})}},"
            );
        }
        let _ = writeln!(out, "\n  {{}}}};");
        // The expression may speak of the template's parameters.
        let bounds = match (max_threads, template, function.find('<')) {
            (Some(most), Some(template), Some(angle)) => {
                let arguments = &function[angle..];
                let _ = writeln!(
                    out,
                    "template <{template}> struct simt_most_{i} {{ static constexpr uint32_t value = {most}; }};"
                );
                format!("simt_most_{i}{arguments}::value")
            }
            (Some(most), ..) => most.clone(),
            (None, ..) => "0".into(),
        };
        let args = match args {
            Some(args) => fields_of(&mut out, i, args),
            None => "nullptr, 0, 0, nullptr".into(),
        };
        let _ = writeln!(
            table,
            "  {{\"{name}{suffix}\", \"{file}\", {line}, {args}, {}, simt_bindings_{i}, {bounds}, simt_run_{i}}},",
            listed.len()
        );
    }
    let count = unit.kernels.len();
    let _ = write!(
        out,
        "static const ::simt::Kernel simt_kernels[] = {{\n{table}  {{}}}};\n}}\n\
         extern \"C\" const ::simt::Table simt_table_metal_{stem};\n\
         const ::simt::Table simt_table_metal_{stem} = {{metal_{stem}::simt_kernels, {count}}};\n"
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# 1 \"k.metal\"\n\
        constant bool masked [[function_constant(2)]];\n\
        constant float TABLE[2] = {1, 2};\n\
        template <typename T, int D> [[kernel, max_total_threads_per_threadgroup(64)]] void f(\n\
          device const T* x [[buffer(0)]], constant P& p [[buffer(1)]], threadgroup float* s [[threadgroup(0)]],\n\
          device const uchar* m [[buffer(3), function_constant(masked)]], uint2 at [[threadgroup_position_in_grid]]) {\n\
          threadgroup T rows[D][2]; threadgroup T* r = rows[0]; const device T* y = x;\n}\n\
        template [[host_name(\"f_half\")]] [[kernel]] void f<half, 64>(device const half*, uint2);\n\
        template [[host_name(\"f_float\")]] [[kernel]] decltype(f<float, 32>) f<float, 32>;\n\
        kernel void g(device float* out [[buffer(5)]]) {}\n";

    #[test]
    fn kernels_instances_and_bindings_are_found() {
        let unit = translate(TEXT).unwrap();
        let names: Vec<_> = unit.kernels.iter().map(|k| (&*k.name, &*k.function)).collect();
        assert_eq!(names, [("g", "g"), ("f_half", "f<half, 64>"), ("f_float", "f<float, 32>")]);
        let bound: Vec<_> =
            unit.kernels[1].parameters.iter().map(|p| (&*p.name, p.bound, p.index)).collect();
        let expected = [
            ("x", "Buffer", 0),
            ("p", "Buffer", 1),
            ("s", "Threadgroup", 0),
            ("m", "OptionalBuffer", 3),
            ("at", "ThreadgroupPositionInGrid", 0),
        ];
        assert_eq!(bound, expected);
        assert_eq!(unit.kernels[1].max_threads.as_deref(), Some("64"));
        assert_eq!((&*unit.constants[0].name, unit.constants[0].index), ("masked", 2));
        let table = super::unit("k", "", &unit);
        assert!(table.contains("::simt::msl::call(f<half, 64>, simt_parameters_1)"), "{table}");
    }

    #[test]
    fn address_spaces_are_gone_and_arrays_in_the_arena() {
        let body = translate(TEXT).unwrap().body;
        assert!(body.contains("const float TABLE[2]"), "{body}");
        assert!(body.contains("FunctionConstant<bool, 2> masked{\"masked\"};"), "{body}");
        assert!(body.contains("using simt_type_rows = T [D][2];"), "{body}");
        assert!(body.contains(" T* r = rows[0]; const  T* y = x;"), "{body}");
        assert!(!body.contains("[["), "{body}");
        assert_eq!(body.lines().count(), TEXT.lines().count());
    }

    #[test]
    fn the_checked_form_keeps_address_spaces() {
        let text = checked(TEXT).unwrap();
        assert!(text.contains("constant bool masked = 0;"), "{text}");
        assert!(
            text.contains("device const T* x , constant P& p , threadgroup float* s"),
            "{text}"
        );
        assert!(
            text.contains("threadgroup simt_type_rows& rows = *(threadgroup simt_type_rows*)0;"),
            "{text}"
        );
        assert!(text.contains("template   decltype(f<float, 32>) f<float, 32>;"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_place() {
        let error = |text: &str| translate(&format!("# 1 \"k.metal\"\n{text}")).unwrap_err();
        let missing = error("kernel void g(device float* x) {}");
        assert_eq!(missing, "k.metal:1: a parameter of g without [[attribute]]");
        let unknown = error("kernel void g(uint x [[phase_of_moon]]) {}");
        assert_eq!(unknown, "k.metal:1: [[phase_of_moon]] is not known");
        let far = error("kernel void g(device int* x [[buffer(31)]]) {}");
        assert_eq!(far, "k.metal:1: buffer(31), of 0 to 30");
    }
}
