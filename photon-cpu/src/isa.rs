//! Which vector instructions the kernels use, chosen when the device is opened.
//!
//! A level is only ever used if this processor has it: [`crate::simd`] asks again before it enters
//! code that needs it, so an [`Isa`] in the wrong hands cannot do harm.

/// A level of vector instructions, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, vectorized by the compiler for the target's baseline.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// [`Isa::Avx2`] and dot products of bytes in fours, as instructions of AVX or of AVX-512.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// [`Isa::Avx512`] and dot products of bytes in fours.
    Avx512Vnni,
    /// [`Isa::Avx512Vnni`] and dot products of bf16 pairs.
    Avx512Bf16,
    /// AArch64, all of which has NEON.
    Neon,
    /// [`Isa::Neon`] and dot products of bytes in fours.
    NeonDot,
    /// [`Isa::NeonDot`] and dot products of bf16 pairs.
    NeonBf16,
    /// [`Isa::NeonBf16`] and products of two rows with two columns, of bf16 and of bytes.
    NeonI8mm,
}

impl Isa {
    const ALL: [Isa; 10] = [
        Isa::Portable,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512,
        Isa::Avx512Vnni,
        Isa::Avx512Bf16,
        Isa::Neon,
        Isa::NeonDot,
        Isa::NeonBf16,
        Isa::NeonI8mm,
    ];

    /// The environment variable that forces a level.
    pub const VARIABLE: &'static str = "PHOTON_CPU_ISA";

    /// The highest level this processor has.
    pub fn detect() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Portable)
    }

    /// The level named by `PHOTON_CPU_ISA`, or the highest if that is not set. An unknown name, or a
    /// level this processor lacks, is an error that lists the choices.
    pub fn from_env() -> Result<Isa, String> {
        match std::env::var_os(Isa::VARIABLE) {
            None => Ok(Isa::detect()),
            Some(name) => Isa::parse(&name.to_string_lossy()),
        }
    }

    fn parse(name: &str) -> Result<Isa, String> {
        let available = Isa::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let why = match Isa::ALL.iter().find(|isa| isa.name() == name) {
                Some(_) => "this processor does not have it",
                None => "no such level",
            };
            let choices: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            format!("{}={name}: {why}; set one of {}", Isa::VARIABLE, choices.join(", "))
        })
    }

    /// The name used in the environment and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
            Isa::NeonBf16 => "neonbf16",
            Isa::NeonI8mm => "neoni8mm",
        }
    }

    /// The level without dot products, which only products of matrices and attention need.
    pub(crate) const fn base(self) -> Isa {
        match self {
            Isa::Portable => Isa::Portable,
            Isa::Avx2 | Isa::AvxVnni => Isa::Avx2,
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => Isa::Avx512,
            Isa::Neon | Isa::NeonDot | Isa::NeonBf16 | Isa::NeonI8mm => Isa::Neon,
        }
    }

    /// Floats of a vector.
    pub(crate) const fn lanes(self) -> usize {
        match self.base() {
            Isa::Avx512 => 16,
            Isa::Neon => 4,
            _ => 8,
        }
    }

    /// Whether it has dot products of bytes in fours.
    pub const fn has_bytes(self) -> bool {
        matches!(self, Isa::AvxVnni | Isa::Avx512Vnni | Isa::NeonDot) || self.has_pairs()
    }

    /// Whether it has dot products of bf16 pairs.
    pub const fn has_pairs(self) -> bool {
        matches!(self, Isa::Avx512Bf16 | Isa::NeonBf16) || self.has_blocks()
    }

    /// Whether it has products of two rows with two columns.
    pub(crate) const fn has_blocks(self) -> bool {
        matches!(self, Isa::NeonI8mm)
    }

    /// All levels this processor has, lowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this processor has the level.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        // The probes are cached by the standard library: a load and a test each.
        match self {
            Isa::Portable => true,
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Isa::AvxVnni => {
                let vex = is_x86_feature_detected!("avxvnni");
                Isa::Avx2.is_available() && (vex || Isa::Avx512Vnni.is_available())
            }
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Isa::Avx512Vnni => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            Isa::Avx512Bf16 => {
                Isa::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            Isa::Neon | Isa::NeonDot | Isa::NeonBf16 | Isa::NeonI8mm => false,
        }
    }

    /// Whether this processor has the level.
    #[cfg(target_arch = "aarch64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_aarch64_feature_detected;
        match self {
            Isa::Portable | Isa::Neon => true,
            Isa::NeonDot => is_aarch64_feature_detected!("dotprod"),
            Isa::NeonBf16 => Isa::NeonDot.is_available() && is_aarch64_feature_detected!("bf16"),
            Isa::NeonI8mm => Isa::NeonBf16.is_available() && is_aarch64_feature_detected!("i8mm"),
            _ => false,
        }
    }

    /// Whether this processor has the level.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub fn is_available(self) -> bool {
        self == Isa::Portable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_found_by_name_and_the_rest_is_refused() {
        for isa in Isa::available() {
            assert_eq!(Isa::parse(isa.name()), Ok(isa));
        }
        let err = Isa::parse("sse9").unwrap_err();
        assert!(
            err.starts_with("PHOTON_CPU_ISA=sse9: no such level; set one of portable"),
            "{err}"
        );
        for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
            assert!(Isa::parse(isa.name()).unwrap_err().contains("does not have it"));
        }
    }
}
