//! The structs that kernels take: plain bytes that know how they lie, so that each side can be held
//! against the other.
use bytemuck::Pod;

/// A field of a [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Bytes from the struct's beginning.
    pub offset: usize,
}

/// How a struct lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its name, in Rust and in the kernel's source.
    pub name: &'static str,
    /// Its bytes.
    pub size: usize,
    /// Its fields in order; none left out, padding included.
    pub fields: &'static [Field],
}

/// The one argument of a kernel. Made by [`arguments!`].
pub(crate) trait Arguments: Pod {
    /// How it lies.
    const LAYOUT: &'static Layout;
}

/// Defines structs that are arguments of kernels, field for field as in the source: addresses as `u64`,
/// everything else in 32 bits.
macro_rules! arguments {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $kind:ty),+ $(,)? })+) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
            struct $name {
                $($field: $kind),+
            }

            impl $crate::arguments::Arguments for $name {
                const LAYOUT: &'static $crate::arguments::Layout = &$crate::arguments::Layout {
                    name: stringify!($name),
                    size: size_of::<$name>(),
                    fields: &[$($crate::arguments::Field {
                        name: stringify!($field),
                        offset: std::mem::offset_of!($name, $field),
                    }),+],
                };
            }
        )+
    };
}

pub(crate) use arguments;

#[cfg(test)]
mod tests {
    use super::*;

    arguments! {
        /// Two of them.
        struct PairArgs { first: u64, second: u32, padding: u32 }
    }

    #[test]
    fn a_struct_knows_how_it_lies() {
        let Layout { name, size, fields } = *PairArgs::LAYOUT;
        let offsets: Vec<_> = fields.iter().map(|field| (field.name, field.offset)).collect();
        assert_eq!((name, size), ("PairArgs", 16));
        assert_eq!(offsets, [("first", 0), ("second", 8), ("padding", 12)]);
    }
}
