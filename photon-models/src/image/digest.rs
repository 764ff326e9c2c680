//! The name of a picture in the caches.
//!
//! A digest covers the shape as well as the bytes, so a 2x8 and an 8x2 picture of the same bytes
//! differ, and so do a file and a picture whose pixels happen to equal it.

use super::RgbImage;

/// BLAKE3 over (width, height, channels, pixels) of a decoded picture, or over (length, bytes) of
/// an encoded one; all numbers little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageDigest(pub [u8; 32]);

impl ImageDigest {
    /// Names the picture by its pixels.
    pub fn of_pixels(image: &RgbImage) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&image.width().to_le_bytes());
        hasher.update(&image.height().to_le_bytes());
        hasher.update(&3u32.to_le_bytes());
        hasher.update(image.pixels());
        Self(hasher.finalize().into())
    }

    /// Names the picture by its file.
    ///
    /// The eight bytes of the length cannot be mistaken for a width and a height: that would take
    /// a file of 4 GiB, or a picture of height zero.
    pub fn of_encoded(bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
        Self(hasher.finalize().into())
    }
}

impl std::fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageDigest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_part_of_the_name() {
        let wide = RgbImage::new(4, 1, (0..12).collect()).unwrap();
        let tall = RgbImage::new(1, 4, (0..12).collect()).unwrap();
        let digests = [
            ImageDigest::of_pixels(&wide),
            ImageDigest::of_pixels(&tall),
            ImageDigest::of_encoded(wide.pixels()),
            ImageDigest::of_encoded(&wide.pixels()[..11]),
        ];
        for (i, a) in digests.iter().enumerate() {
            assert!(digests[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(digests[0], ImageDigest::of_pixels(&wide.clone()));
    }

    #[test]
    fn a_digest_is_blake3_of_the_documented_bytes() {
        let image = RgbImage::new(2, 1, vec![9, 8, 7, 6, 5, 4]).unwrap();
        let bytes = [2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 9, 8, 7, 6, 5, 4];
        assert_eq!(ImageDigest::of_pixels(&image).0, *blake3::hash(&bytes).as_bytes());
        let digest = ImageDigest::of_encoded(b"");
        assert_eq!(digest.0, *blake3::hash(&[0; 8]).as_bytes());
        assert_eq!(digest.to_string(), blake3::hash(&[0; 8]).to_hex().as_str());
    }
}
