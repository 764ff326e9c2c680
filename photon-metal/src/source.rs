//! The kernels' sources, as they are given to Metal's compiler, and what a compiled one is called.

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

/// A file of kernels, or a header they include.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Name of the file.
    pub name: &'static str,
    /// What is in it.
    pub text: &'static str,
}

impl Source {
    /// Every file of kernels.
    pub fn all() -> &'static [Source] {
        SOURCES
    }

    /// The file's name without its ending.
    pub fn stem(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }

    /// The whole text: where a header of ours is included stands what is in it, the first time.
    pub fn whole(&self) -> String {
        self.with(HEADERS, &mut Vec::new())
    }

    /// Whether it is for GPUs with tensor operations, and so in Metal 4's language.
    pub fn needs_tensor_ops(&self) -> bool {
        self.text.contains("#include <metal_tensor>")
    }

    /// The whole text, and whether there is bfloat.
    pub fn compiled(&self, has_bfloat: bool) -> String {
        let define = if has_bfloat { "#define PHOTON_BFLOAT 1\n" } else { "" };
        format!("{define}{}", self.whole())
    }

    /// Metal's language that it is in.
    pub fn language(&self, has_bfloat: bool) -> &'static str {
        match (self.needs_tensor_ops(), has_bfloat) {
            (true, _) => "metal4.0",
            (false, true) => "metal3.1",
            (false, false) => "metal3.0",
        }
    }

    /// What it is called when it is compiled: `rows-metal3.1-0123456789abcdef.metallib`. The digest is that of
    /// all that is compiled, so that nothing stale is ever loaded.
    pub fn library_name(&self, has_bfloat: bool) -> String {
        let text = self.compiled(has_bfloat);
        // FNV-1a: files are told apart here, not kept from anybody.
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let digest = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        format!("{}-{}-{digest:016x}.metallib", self.stem(), self.language(has_bfloat))
    }

    fn with(self, headers: &[Source], seen: &mut Vec<&'static str>) -> String {
        let mut text = String::new();
        for line in self.text.lines() {
            let name = line.trim().strip_prefix("#include \"").and_then(|r| r.strip_suffix('"'));
            let header = name.and_then(|name| headers.iter().find(|h| h.name == name));
            match header {
                Some(header) if seen.contains(&header.name) => {}
                Some(header) => {
                    seen.push(header.name);
                    text += &header.with(headers, seen);
                }
                None if line.trim() == "#pragma once" => {}
                None => {
                    text += line;
                    text.push('\n');
                }
            }
        }
        text
    }
}

/// Whether a kernel is made only where there is bfloat.
#[cfg(any(all(test, target_os = "linux"), feature = "sim"))]
pub(crate) fn needs_bfloat(kernel: &str) -> bool {
    let quoted = format!("\"{kernel}\"");
    let only = |text: &'static str| {
        text.split("#ifdef PHOTON_BFLOAT").skip(1).filter_map(|rest| rest.split("#endif").next())
    };
    Source::all().iter().flat_map(|source| only(source.text)).any(|part| part.contains(&quoted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_where_they_are_first_included() {
        let headers = [
            Source { name: "a.h", text: "#pragma once\n#include <metal_stdlib>\na\n" },
            Source { name: "b.h", text: "#pragma once\n#include \"a.h\"\nb" },
        ];
        let source = Source { name: "k.metal", text: "#include \"b.h\"\n#include \"a.h\"\nk\n" };
        let whole = source.with(&headers, &mut Vec::new());
        assert_eq!(whole, "#include <metal_stdlib>\na\nb\nk\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn kernels_on_bfloat_are_those_behind_its_name() {
        assert!(needs_bfloat("attention_bf16_72") && needs_bfloat("layer_norm_bf16_2048"));
        assert!(!needs_bfloat("attention_f16_72") && !needs_bfloat("linear_8x8_bf16_float"));
    }

    #[test]
    fn what_is_compiled_is_named_after_all_that_went_into_it() {
        let name = |text, bfloat| Source { name: "rows.metal", text }.library_name(bfloat);
        // FNV-1a of a line with an a.
        assert_eq!(name("a", false), "rows-metal3.0-089bdc07b544e7b2.metallib");
        assert_ne!(name("a", false), name("b", false));
        assert_eq!(&name("a", true)[..14], "rows-metal3.1-");
        assert_eq!(&name("#include <metal_tensor>", true)[..14], "rows-metal4.0-");
    }

    #[test]
    fn every_source_is_whole() {
        assert!(!Source::all().is_empty());
        for source in Source::all() {
            let whole = source.whole();
            assert!(!whole.contains("#include \""), "{} includes what is no header", source.name);
            assert!(whole.contains("kernel"), "{} has no kernel", source.name);
        }
    }
}
