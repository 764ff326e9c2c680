//! What stands for a token in the prefix cache.

/// A kind of token and its value in 64 bits; equal keys have equal embeddings.
///
/// The two upper bits name the kind: an id, a place in a picture, a coordinate, a size. Coordinates and
/// sizes are the bit patterns of non-negative floats, which need 31 bits each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey(u64);

const KIND: u32 = 62;

impl TokenKey {
    /// An id of the vocabulary.
    pub const fn text(id: u32) -> Self {
        TokenKey(id as u64)
    }

    /// The place-th position of those that a picture takes and that see each other both ways.
    ///
    /// What such a position holds depends on the whole picture, so each has 62 bits of the picture's
    /// digest, four of them in a row all but 8 of its bits. Where it stands among them is known from the
    /// keys before it.
    pub fn image(digest: &[u8; 32], place: u32) -> Self {
        let word = digest.as_chunks::<8>().0[place as usize % 4];
        TokenKey(1 << KIND | u64::from_le_bytes(word) >> 2)
    }

    /// The id, if it is one of the vocabulary.
    pub const fn id(self) -> Option<u32> {
        if self.0 >> KIND == 0 { Some(self.0 as u32) } else { None }
    }

    /// Whether it is a place in a picture.
    pub const fn is_image(self) -> bool {
        self.0 >> KIND == 1
    }

    /// All of it, as a number.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A coordinate, as the bits of its f32.
    ///
    /// # Panics
    /// If it is negative.
    pub const fn coord(bits: u32) -> Self {
        TokenKey(2 << KIND | magnitude(bits))
    }

    /// Width and height, as the bits of their f32.
    ///
    /// # Panics
    /// If one is negative.
    pub const fn size(width_bits: u32, height_bits: u32) -> Self {
        TokenKey(3 << KIND | magnitude(width_bits) << 31 | magnitude(height_bits))
    }
}

/// The bits without the sign; minus zero is zero.
const fn magnitude(bits: u32) -> u64 {
    let magnitude = bits & 0x7FFF_FFFF;
    assert!(bits == magnitude || magnitude == 0, "a negative coordinate or size");
    magnitude as u64
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.0 & ((1 << KIND) - 1);
        let float = |bits: u64| f32::from_bits(bits as u32 & 0x7FFF_FFFF);
        match self.0 >> KIND {
            0 => write!(f, "{value}"),
            1 => write!(f, "image {value:x}"),
            2 => write!(f, "coord {}", float(value)),
            _ => write!(f, "size {} x {}", float(value >> 31), float(value)),
        }
    }
}

/// What keeps prefixes apart although their keys are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// The model.
    pub model: u32,
    /// The adapter on top of it.
    pub adapter: u32,
    /// How pictures were resized and cut.
    pub preprocess: u8,
    /// A secret of whoever must not learn what others have asked.
    pub tenant: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_values_are_apart() {
        let one = 1f32.to_bits();
        let digest = std::array::from_fn(|i| i as u8);
        let keys = [
            TokenKey::text(1),
            TokenKey::image(&digest, 0),
            TokenKey::image(&digest, 1),
            TokenKey::image(&[1; 32], 0),
            TokenKey::coord(1),
            TokenKey::size(0, 1),
            TokenKey::size(1, 0),
            TokenKey::coord(one),
            TokenKey::size(one, one),
            TokenKey::text(one),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b), "{a:?}");
        }
        assert_eq!(TokenKey::image(&digest, 1), TokenKey::image(&digest, 5));
        assert_eq!(TokenKey::coord((-0f32).to_bits()), TokenKey::coord(0));
        assert_eq!(format!("{:?}", TokenKey::size(one, 0.25f32.to_bits())), "size 1 x 0.25");
    }

    #[test]
    #[should_panic(expected = "negative")]
    fn a_negative_coordinate_is_a_bug() {
        TokenKey::coord((-1f32).to_bits());
    }
}
