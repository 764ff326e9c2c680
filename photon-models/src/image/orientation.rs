//! Turning a picture the way its EXIF orientation says.
//!
//! Cameras store the sensor's rows and a number from 1 to 8 that says how to hold them. A number
//! or a block that makes no sense is ignored, as every viewer does.

use super::RgbImage;

/// One of the eight ways to hold a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orientation {
    /// Rows become columns, before the flips.
    transpose: bool,
    flip_x: bool,
    flip_y: bool,
}

impl Orientation {
    pub(super) const UPRIGHT: Self = Self { transpose: false, flip_x: false, flip_y: false };

    /// From the value of tag 0x0112; anything but 2 to 8 is upright.
    pub(super) fn from_exif_value(value: u32) -> Self {
        let (transpose, flip_x, flip_y) = match value {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => return Self::UPRIGHT,
        };
        Self { transpose, flip_x, flip_y }
    }

    /// From an EXIF block, with or without its `Exif\0\0` in front; a malformed one is upright.
    pub(super) fn from_exif(block: &[u8]) -> Self {
        let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
        Self::from_exif_value(orientation_tag(tiff).unwrap_or(1))
    }

    /// Turns the picture; upright costs nothing.
    pub(super) fn apply(self, image: RgbImage) -> RgbImage {
        if self == Self::UPRIGHT {
            return image;
        }
        let (src_width, src_height) = (image.width as usize, image.height as usize);
        let (width, height) =
            if self.transpose { (src_height, src_width) } else { (src_width, src_height) };
        // Source pixel of (x, y): start + x * step_x + y * step_y, in pixels.
        let (mut step_x, mut step_y) =
            if self.transpose { (src_width as isize, 1) } else { (1, src_width as isize) };
        let mut start = 0;
        if self.flip_x {
            start += step_x * (width as isize - 1);
            step_x = -step_x;
        }
        if self.flip_y {
            start += step_y * (height as isize - 1);
            step_y = -step_y;
        }
        let mut pixels = vec![0; image.pixels.len()];
        for (y, row) in pixels.chunks_exact_mut(width * 3).enumerate() {
            let mut at = start + y as isize * step_y;
            for pixel in row.chunks_exact_mut(3) {
                let from = at as usize * 3;
                pixel.copy_from_slice(&image.pixels[from..from + 3]);
                at += step_x;
            }
        }
        RgbImage { width: width as u32, height: height as u32, pixels }
    }
}

/// The value of tag 0x0112 in the first directory of a TIFF block.
fn orientation_tag(tiff: &[u8]) -> Option<u32> {
    let big = match tiff.get(..4)? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes: [u8; 2] = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(u32::from(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }))
    };
    let u32_at = |at: usize| {
        let bytes: [u8; 4] = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let directory = u32_at(4)? as usize;
    for i in 0..u16_at(directory)? as usize {
        let entry = directory + 2 + i * 12;
        if u16_at(entry)? == 0x0112 {
            // Some writers store a LONG where the standard asks for a SHORT.
            return match (u16_at(entry + 2)?, u32_at(entry + 4)?) {
                (3, 1) => u16_at(entry + 8),
                (4, 1) => u32_at(entry + 8),
                _ => None,
            };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels are their own letters: `abc/def` is two rows of three.
    fn image(rows: &str) -> RgbImage {
        let rows: Vec<&str> = rows.split('/').collect();
        let pixels = rows.iter().flat_map(|row| row.bytes().flat_map(|b| [b; 3])).collect();
        RgbImage::new(rows[0].len() as u32, rows.len() as u32, pixels).unwrap()
    }

    fn check(value: u32, expected: &str) {
        let turned = Orientation::from_exif_value(value).apply(image("abc/def"));
        assert_eq!(turned.pixels, image(expected).pixels, "orientation {value}");
        assert_eq!((turned.width, turned.height), {
            let e = image(expected);
            (e.width, e.height)
        });
    }

    #[test]
    fn all_eight_orientations() {
        check(1, "abc/def");
        check(2, "cba/fed");
        check(3, "fed/cba");
        check(4, "def/abc");
        check(5, "ad/be/cf");
        check(6, "da/eb/fc");
        check(7, "fc/eb/da");
        check(8, "cf/be/ad");
        check(0, "abc/def");
        check(9, "abc/def");
    }

    fn block(big: bool, kind: u16, count: u32, value: u16) -> Vec<u8> {
        let u16b = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let u32b = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut bytes = if big { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        bytes.extend(u32b(8));
        bytes.extend(u16b(2));
        bytes.extend(u16b(0x0100).iter().chain(&u16b(3)).chain(&u32b(1)).chain(&u32b(0)));
        bytes.extend(u16b(0x0112).iter().chain(&u16b(kind)).chain(&u32b(count)));
        match kind {
            4 => bytes.extend(u32b(u32::from(value))),
            _ => bytes.extend(u16b(value).iter().chain(&[0, 0])),
        }
        bytes
    }

    #[test]
    fn the_tag_is_found_in_either_byte_order() {
        for big in [false, true] {
            for kind in [3, 4] {
                let block = block(big, kind, 1, 6);
                assert_eq!(orientation_tag(&block), Some(6));
                let with_name = [b"Exif\0\0".as_slice(), &block].concat();
                assert_eq!(Orientation::from_exif(&with_name), Orientation::from_exif_value(6));
            }
        }
    }

    #[test]
    fn malformed_blocks_are_upright() {
        let whole = block(true, 3, 1, 6);
        for cut in 0..whole.len() - 2 {
            assert_eq!(Orientation::from_exif(&whole[..cut]), Orientation::UPRIGHT, "cut at {cut}");
        }
        assert_eq!(Orientation::from_exif(&block(false, 3, 1, 77)), Orientation::UPRIGHT);
        assert_eq!(Orientation::from_exif(&block(false, 3, 5, 6)), Orientation::UPRIGHT);
        assert_eq!(Orientation::from_exif(&block(false, 2, 1, 6)), Orientation::UPRIGHT);
        let mut far = whole;
        far[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Orientation::from_exif(&far), Orientation::UPRIGHT);
    }
}
