//! Cutting a picture into the crops the vision encoder sees.
//!
//! Crop 0 is the whole picture squeezed into a square. The others are a grid of overlapping
//! squares cut from a larger resize, so that small print survives. The grid depends on the
//! picture's size alone. A picture too small for a grid has one crop: its only tile would equal
//! crop 0, and encoding it once gives the same result as encoding it twice.

use std::cell::RefCell;

use super::resize::{Lanczos, give_back, grown};
use super::{ImageError, ResizeOrder, RgbImage};

/// How pictures become crops; part of a checkpoint's config.
///
/// A crop is `crop_size` pixels square. Neighboring tiles share a margin of `overlap_margin`
/// patches on each side, so each adds a *window* of `crop_size - 2 * margin` fresh pixels: 266 of
/// 378 by default.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CropConfig {
    /// Side of a crop in pixels, a multiple of `patch_size`.
    pub crop_size: u32,
    /// Side of a patch in pixels.
    pub patch_size: u32,
    /// Margin shared between tiles, in patches.
    pub overlap_margin: u32,
    /// How many tiles a grid aims for at most; see [`CropConfig::tiling`] for when it misses.
    pub max_crops: u32,
    /// Order of the passes of a resize.
    pub resize: ResizeOrder,
}

impl Default for CropConfig {
    fn default() -> Self {
        Self {
            crop_size: 378,
            patch_size: 14,
            overlap_margin: 4,
            max_crops: 12,
            resize: ResizeOrder::Pil,
        }
    }
}

/// A grid of tiles, `rows` x `cols`, both at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiling {
    /// Tiles from top to bottom.
    pub rows: u32,
    /// Tiles from left to right.
    pub cols: u32,
}

impl Tiling {
    /// The grid of a picture that is not cut.
    pub const SINGLE: Self = Self { rows: 1, cols: 1 };

    /// Number of tiles.
    pub fn num_tiles(self) -> usize {
        self.rows as usize * self.cols as usize
    }

    /// Crops of a picture with this grid: the global one and, where they differ from it, the tiles.
    pub fn num_crops(self) -> usize {
        if self == Self::SINGLE { 1 } else { 1 + self.num_tiles() }
    }
}

/// The crops of one picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Crops {
    /// The grid behind crops 1 and up.
    pub tiling: Tiling,
    /// Side of a crop in pixels.
    pub crop_size: u32,
    /// `[num_crops, crop_size, crop_size, 3]`; crop 0 is the whole picture, the tiles follow row by
    /// row.
    pub crops: Vec<u8>,
}

thread_local! {
    /// The resizer and the large resize that tiles are cut from, of this thread's last picture.
    static SCRATCH: RefCell<(Lanczos, Vec<u8>)> = RefCell::default();
}

/// Upper bounds that keep the arithmetic and the memory of a config from a stranger in hand.
const MAX_CROP_SIZE: u32 = 4096;
const MAX_MAX_CROPS: u32 = 1024;

impl CropConfig {
    /// Checks that the numbers fit together, so that every picture can be cut.
    pub fn check(&self) -> Result<(), ImageError> {
        self.window().map(|_| ())
    }

    /// Pixels each tile adds to the one before, or why there are none.
    fn window(&self) -> Result<u32, ImageError> {
        let Self { crop_size, patch_size, overlap_margin, max_crops, .. } = *self;
        let bad = |what: String| Err(ImageError::BadCropConfig(what));
        if crop_size == 0 || crop_size > MAX_CROP_SIZE {
            return bad(format!("crop_size is {crop_size}, it must be 1 to {MAX_CROP_SIZE}"));
        }
        if patch_size == 0 || crop_size % patch_size != 0 {
            return bad(format!(
                "crop_size {crop_size} is not a multiple of patch_size {patch_size}"
            ));
        }
        if max_crops == 0 || max_crops > MAX_MAX_CROPS {
            return bad(format!("max_crops is {max_crops}, it must be 1 to {MAX_MAX_CROPS}"));
        }
        let margins = u64::from(overlap_margin) * u64::from(patch_size) * 2;
        if margins >= u64::from(crop_size) {
            return bad(format!(
                "overlap_margin {overlap_margin} leaves no window: two margins take {margins} of \
                 {crop_size} pixels"
            ));
        }
        Ok(crop_size - margins as u32)
    }

    /// The grid for a picture of this size.
    ///
    /// Moondream 2, `select_tiling`, on the size less both margins; f64 as there, so that the
    /// square roots round alike. Up to an aspect of about 12 to 1 the grid has at most `max_crops`
    /// tiles. Beyond, the formula (which we keep, since the model was trained on it) gives one row
    /// or column of up to `sqrt(max_crops * aspect)` tiles: 26 for 30000x600. Callers with a fixed
    /// budget ask [`CropConfig::most_tiles`].
    ///
    /// # Errors
    /// [`ImageError::BadCropConfig`] where [`CropConfig::check`] fails.
    pub fn tiling(&self, height: u32, width: u32) -> Result<Tiling, ImageError> {
        let window = self.window()?;
        let margins = self.crop_size - window;
        let height = height.saturating_sub(margins).max(1);
        let width = width.saturating_sub(margins).max(1);
        if height <= window || width <= window {
            return Ok(Tiling::SINGLE);
        }
        let min_rows = height.div_ceil(window);
        let min_cols = width.div_ceil(window);
        let max_crops = f64::from(self.max_crops);
        let needed = f64::from(min_rows) * f64::from(min_cols);
        if needed > max_crops {
            let ratio = (max_crops / needed).sqrt();
            return Ok(Tiling {
                rows: ((f64::from(min_rows) * ratio) as u32).max(1),
                cols: ((f64::from(min_cols) * ratio) as u32).max(1),
            });
        }
        let (h, w) = (f64::from(height), f64::from(width));
        let mut rows = ((max_crops * h / w).sqrt() as u32).max(min_rows);
        let mut cols = ((max_crops * w / h).sqrt() as u32).max(min_cols);
        if u64::from(rows) * u64::from(cols) > u64::from(self.max_crops) {
            if cols > rows {
                cols = self.max_crops / rows;
            } else {
                rows = self.max_crops / cols;
            }
        }
        Ok(Tiling { rows: rows.max(1), cols: cols.max(1) })
    }

    /// The most tiles any picture with sides up to `max_side` gets: 12 up to a side of 3304 with
    /// the default config, 27 for 32,768.
    ///
    /// # Errors
    /// [`ImageError::BadCropConfig`] where [`CropConfig::check`] fails.
    pub fn most_tiles(&self, max_side: u32) -> Result<usize, ImageError> {
        // The formula passes max_crops only in a picture one tile high (or wide) after scaling, and
        // most so in the lowest that is cut at all.
        let lowest = self.crop_size.saturating_add(1);
        let longest = self.tiling(lowest.min(max_side), max_side)?.num_tiles();
        Ok(longest.max(self.max_crops as usize))
    }

    /// Resizes and cuts a picture.
    ///
    /// # Errors
    /// [`ImageError::BadCropConfig`] where [`CropConfig::check`] fails.
    pub fn crops(&self, image: &RgbImage) -> Result<Crops, ImageError> {
        let tiling = self.tiling(image.height(), image.width())?;
        let num_crops = if tiling == Tiling::SINGLE { 1 } else { 1 + tiling.num_tiles() };
        let crop_bytes = self.crop_size as usize * self.crop_size as usize * 3;
        let mut crops = vec![0; num_crops * crop_bytes];
        let (global, tiles) = crops.split_at_mut(crop_bytes);
        SCRATCH.with_borrow_mut(|(lanczos, large)| {
            lanczos.resize(image, self.crop_size, self.crop_size, self.resize, global);
            if tiling != Tiling::SINGLE {
                self.cut(image, tiling, tiles, lanczos, large)?;
                give_back(large);
            }
            Ok(())
        })?;
        Ok(Crops { tiling, crop_size: self.crop_size, crops })
    }

    /// Fills `tiles`, `[tiles, crop_size, crop_size, 3]`, from one resize of the picture.
    fn cut(
        &self,
        image: &RgbImage,
        tiling: Tiling,
        tiles: &mut [u8],
        lanczos: &mut Lanczos,
        large: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let window = self.window()?;
        let margins = self.crop_size - window;
        let width = tiling.cols * window + margins;
        let height = tiling.rows * window + margins;
        let large = grown(large, width as usize * height as usize * 3);
        lanczos.resize(image, width, height, self.resize, large);

        let (side, window) = (self.crop_size as usize, window as usize);
        let stride = width as usize * 3;
        for (i, tile) in tiles.chunks_exact_mut(side * side * 3).enumerate() {
            let (row, col) = (i / tiling.cols as usize, i % tiling.cols as usize);
            for (y, line) in tile.chunks_exact_mut(side * 3).enumerate() {
                let at = (row * window + y) * stride + col * window * 3;
                line.copy_from_slice(&large[at..at + side * 3]);
            }
        }
        Ok(())
    }
}

impl Crops {
    /// Number of crops stored: 1 for a single picture, else 1 + the number of tiles.
    pub fn num_crops(&self) -> usize {
        self.crops.len() / self.crop_bytes()
    }

    /// Whether crop 0 also stands for the only tile, which is then not stored: the consumer uses
    /// its features both as the global and as the local ones.
    pub fn global_is_local(&self) -> bool {
        self.tiling == Tiling::SINGLE
    }

    /// Crop `i`, `[crop_size, crop_size, 3]`.
    ///
    /// # Panics
    /// If `i` is not below [`Crops::num_crops`].
    pub fn crop(&self, i: usize) -> &[u8] {
        &self.crops[i * self.crop_bytes()..(i + 1) * self.crop_bytes()]
    }

    fn crop_bytes(&self) -> usize {
        self.crop_size as usize * self.crop_size as usize * 3
    }
}

impl std::fmt::Debug for Crops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tiling { rows, cols } = self.tiling;
        write!(f, "Crops({} of {} px, tiling {rows}x{cols})", self.num_crops(), self.crop_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiling(height: u32, width: u32) -> (u32, u32) {
        let Tiling { rows, cols } = CropConfig::default().tiling(height, width).unwrap();
        (rows, cols)
    }

    #[test]
    fn grids_equal_the_reference() {
        let cases = [
            ((300, 300), (1, 1)),
            ((379, 379), (3, 3)),
            ((480, 640), (2, 4)),
            ((600, 800), (2, 4)),
            ((768, 1024), (3, 4)),
            ((1024, 1024), (3, 3)),
            ((2048, 1536), (4, 3)),
            ((4000, 3000), (4, 2)),
            ((3000, 400), (8, 1)),
            // Either side at the edge of being cut.
            ((378, 4000), (1, 1)),
            ((4000, 378), (1, 1)),
            ((1, 1), (1, 1)),
            ((1, 30_000), (1, 1)),
            ((u32::MAX, 1), (1, 1)),
            // Past 12 to 1 the formula itself exceeds max_crops.
            ((600, 30_000), (1, 26)),
        ];
        for ((height, width), expected) in cases {
            assert_eq!(tiling(height, width), expected, "{height}x{width}");
        }
    }

    #[test]
    fn grids_stay_within_max_crops_up_to_its_aspect() {
        let config = CropConfig::default();
        for height in (1..3300).step_by(13) {
            for width in (1..3300).step_by(17) {
                let tiling = config.tiling(height, width).unwrap();
                assert!((1..=12).contains(&tiling.num_tiles()), "{height}x{width}: {tiling:?}");
            }
        }
    }

    #[test]
    fn most_tiles_is_a_bound_that_is_reached() {
        let config = CropConfig::default();
        for max_side in [1, 378, 379, 3304, 3305, 9000, 32_768, 65_535] {
            let most = config.most_tiles(max_side).unwrap();
            let mut seen = 12;
            for side in (1..=max_side.min(5000)).chain([max_side]) {
                seen = seen.max(config.tiling(side, max_side).unwrap().num_tiles());
                seen = seen.max(config.tiling(max_side, side).unwrap().num_tiles());
            }
            assert_eq!(most, seen, "side {max_side}");
        }
        assert_eq!(config.most_tiles(3304).unwrap(), 12);
        assert_eq!(config.most_tiles(32_768).unwrap(), 27);
    }

    #[test]
    fn a_config_without_a_window_is_an_error() {
        let good = CropConfig::default();
        let message = |config: CropConfig| match (config.check(), config.tiling(9, 9)) {
            (Err(a), Err(b)) if a == b => a.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(good.check(), Ok(()));
        // 13 patches a side leave 14 of 378 pixels, 14 leave none.
        assert_eq!(CropConfig { overlap_margin: 13, ..good.clone() }.check(), Ok(()));
        assert_eq!(
            message(CropConfig { overlap_margin: 14, ..good.clone() }),
            "bad crop config: overlap_margin 14 leaves no window: two margins take 392 of 378 pixels"
        );
        assert_eq!(
            message(CropConfig { patch_size: 0, ..good.clone() }),
            "bad crop config: crop_size 378 is not a multiple of patch_size 0"
        );
        message(CropConfig { overlap_margin: u32::MAX, ..good.clone() });
        message(CropConfig { crop_size: 0, ..good.clone() });
        message(CropConfig { crop_size: u32::MAX, ..good.clone() });
        message(CropConfig { max_crops: 0, ..good.clone() });
        let image = RgbImage::new(1, 1, vec![0; 3]).unwrap();
        assert!(CropConfig { overlap_margin: 14, ..good }.crops(&image).is_err());
    }

    /// A picture whose pixels can be told apart, smooth enough to survive a resize.
    fn gradient(width: u32, height: u32) -> RgbImage {
        let pixels = (0..height)
            .flat_map(|y| {
                (0..width).flat_map(move |x| {
                    [(x * 255 / width) as u8, (y * 255 / height) as u8, ((x ^ y) & 63) as u8]
                })
            })
            .collect();
        RgbImage::new(width, height, pixels).unwrap()
    }

    #[test]
    fn tiles_are_windows_of_one_large_resize() {
        // With margins of 1 patch of 2 pixels, a crop of 8 has a window of 4.
        for resize in [ResizeOrder::Pil, ResizeOrder::Kestrel] {
            let config = CropConfig {
                crop_size: 8,
                patch_size: 2,
                overlap_margin: 1,
                max_crops: 12,
                resize,
            };
            let image = gradient(20, 12);
            let crops = config.crops(&image).unwrap();
            assert_eq!(crops.tiling, Tiling { rows: 2, cols: 4 });
            assert_eq!((crops.num_crops(), crops.global_is_local()), (9, false));
            // 2 x 4 windows of 4 and two margins of 2: 12 x 20, the picture itself.
            for (i, tile) in (1..9).map(|i| (i - 1, crops.crop(i))) {
                for (y, line) in tile.chunks_exact(24).enumerate() {
                    let at = ((i / 4 * 4 + y) * 20 + i % 4 * 4) * 3;
                    assert_eq!(line, &image.pixels()[at..at + 24], "tile {i}, line {y}");
                }
            }
        }
    }

    #[test]
    fn a_small_picture_has_one_crop() {
        let crops = CropConfig::default().crops(&gradient(378, 378)).unwrap();
        assert_eq!((crops.num_crops(), crops.global_is_local()), (1, true));
        assert_eq!(crops.crop(0), gradient(378, 378).pixels());
        assert_eq!(format!("{crops:?}"), "Crops(1 of 378 px, tiling 1x1)");
    }

    #[test]
    fn extreme_shapes_are_cut_like_any_other() {
        for order in [ResizeOrder::Pil, ResizeOrder::Kestrel] {
            let config = CropConfig { resize: order, ..CropConfig::default() };
            for (width, height) in [(1, 1), (30_000, 1), (1, 30_000), (2, 900), (379, 12_000)] {
                let pixels = [200, 100, 50].repeat((width * height) as usize);
                let image = RgbImage::new(width, height, pixels).unwrap();
                let crops = config.crops(&image).unwrap();
                let tiles = crops.tiling.num_tiles();
                assert_eq!(crops.num_crops(), if tiles == 1 { 1 } else { 1 + tiles });
                // Weights sum to one, so a flat picture stays flat.
                let flat = crops
                    .crops
                    .chunks_exact(3)
                    .all(|pixel| pixel.iter().zip([200, 100, 50]).all(|(a, b)| a.abs_diff(b) <= 1));
                assert!(flat, "{width}x{height} {order}");
            }
        }
    }

    #[test]
    fn the_two_orders_differ_by_rounding_only() {
        let image = gradient(700, 500);
        let crops = |resize| CropConfig { resize, ..CropConfig::default() }.crops(&image).unwrap();
        let (pil, kestrel) = (crops(ResizeOrder::Pil), crops(ResizeOrder::Kestrel));
        assert_eq!(pil.tiling, kestrel.tiling);
        let differ = |(a, b): (&u8, &u8)| a.abs_diff(*b);
        let most = pil.crops.iter().zip(&kestrel.crops).map(differ).max();
        // The third channel is 64-level sawtooth: overshoot clipped between the passes shows.
        assert!(most > Some(0) && most < Some(24), "{most:?}");
    }
}
