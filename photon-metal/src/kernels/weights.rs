//! How weight matrices lie in memory: the Rust side of `weights.h`, which says why.
use std::num::NonZero;

use half::bf16;
use photon_core::{DType, WeightData, WeightFormat, quant};

use super::elements::type_code;

/// Features of a tile.
pub(super) const TILE_N: usize = 32;
/// Elements of k of a block.
pub(super) const BLOCK_K: usize = 32;
/// Bytes of a vector: as many of a feature lie together.
const VECTOR: usize = 16;
/// Bytes before the scales of int4, which say how they are written.
const HEADER: usize = 16;
/// Matrices begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;
/// Bytes a thread should have to pack; some milliseconds.
const PACK_GRAIN: usize = 8 << 20;

/// Where things are in a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    format: WeightFormat,
    n: usize,
    k: usize,
}

impl Layout {
    /// The layout of an `[n, k]` matrix, if there is one for the format.
    pub(super) fn of(format: WeightFormat, n: usize, k: usize) -> Option<Layout> {
        let known = match format {
            WeightFormat::Float(dtype) => dtype.is_float(),
            WeightFormat::Int8 | WeightFormat::Fp8 => true,
            WeightFormat::Int4 { group } => group == 32 || group == 128,
            _ => false,
        };
        known.then_some(Layout { format, n, k })
    }

    /// The number kernels know the format by.
    pub(super) fn code(self) -> u32 {
        match self.format {
            WeightFormat::Float(dtype) => type_code(dtype),
            WeightFormat::Int8 => 3,
            WeightFormat::Fp8 => 4,
            _ => 5,
        }
    }

    /// Blocks along k. An empty row has one, of zeros, so that nothing is a special case.
    pub(super) fn k_blocks(self) -> usize {
        self.k.div_ceil(BLOCK_K).max(1)
    }

    fn tiles(self) -> usize {
        self.n.div_ceil(TILE_N)
    }

    /// Bytes of a tile.
    fn tile_bytes(self) -> usize {
        TILE_N * self.format.row_bytes(BLOCK_K * self.k_blocks())
    }

    /// Bytes from the beginning of a matrix to its scales.
    pub(super) fn scales_at(self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    /// `2^shift` blocks share a scale.
    pub(super) fn group_shift(self) -> u32 {
        match self.format {
            WeightFormat::Int4 { group } => (group as usize / BLOCK_K).ilog2(),
            _ => 0,
        }
    }

    /// Groups along k, those of padding counted.
    fn groups(self) -> usize {
        ((self.k_blocks() - 1) >> self.group_shift()) + 1
    }

    /// Bytes of scales, at most: matrices that are copied into each other's places have the same size,
    /// however theirs are written.
    fn scale_bytes(self) -> usize {
        match self.format {
            WeightFormat::Float(_) => 0,
            WeightFormat::Int8 | WeightFormat::Fp8 => 4 * self.tiles() * TILE_N,
            _ => HEADER + 8 * self.tiles() * self.groups() * TILE_N,
        }
    }

    /// Bytes of a matrix.
    pub(super) fn matrix_bytes(self) -> usize {
        (self.scales_at() + self.scale_bytes()).next_multiple_of(ALIGNMENT)
    }
}

/// Packs matrices one after the other.
///
/// # Panics
/// If there are not as many bytes and scales as the matrices need.
pub(super) fn pack(data: &WeightData<'_>, layout: Layout) -> Vec<u8> {
    let WeightData { count, n, k, format, bytes, scales } = *data;
    let (row_bytes, per_row) = (format.row_bytes(k), format.row_scales(k));
    assert_eq!(bytes.len(), count * n * row_bytes, "bytes of {count} x [{n}, {k}] {format}");
    assert_eq!(scales.len(), count * n * per_row, "scales of {count} x [{n}, {k}] {format}");
    let mut out = vec![0; count * layout.matrix_bytes()];
    if n == 0 {
        return out;
    }
    // Tiles of all matrices, each with the rows it is made of.
    let mut tiles = Vec::with_capacity(count * layout.tiles());
    for (matrix, out) in out.chunks_exact_mut(layout.matrix_bytes()).enumerate() {
        let (vectors, tail) = out.split_at_mut(layout.scales_at());
        pack_scales(layout, per_row, &scales[matrix * n * per_row..][..n * per_row], tail);
        let rows = &bytes[matrix * n * row_bytes..][..n * row_bytes];
        let sources = (0..n)
            .step_by(TILE_N)
            .map(|first| &rows[first * row_bytes..n.min(first + TILE_N) * row_bytes]);
        tiles.extend(sources.zip(vectors.chunks_exact_mut(layout.tile_bytes())));
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(bytes.len() / PACK_GRAIN + 1);
    let per_thread = tiles.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for tiles in tiles.chunks_mut(per_thread) {
            scope.spawn(move || {
                tiles.iter_mut().for_each(|(rows, out)| pack_tile(row_bytes, rows, out));
            });
        }
    });
    out
}

/// Packs up to 32 rows: vectors of 16 bytes, those of all rows that begin at the same place together.
fn pack_tile(row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    for (feature, row) in rows.chunks_exact(row_bytes.max(1)).enumerate() {
        for (part, vectors) in row.chunks(VECTOR).zip(out.chunks_exact_mut(VECTOR * TILE_N)) {
            vectors[feature * VECTOR..][..part.len()].copy_from_slice(part);
        }
    }
}

/// Lays out the scales of a matrix, `per_row` to a row.
fn pack_scales(layout: Layout, per_row: usize, scales: &[f32], out: &mut [u8]) {
    let WeightFormat::Int4 { .. } = layout.format else {
        let scales = scales.iter().flat_map(|scale| scale.to_le_bytes());
        return out.iter_mut().zip(scales).for_each(|(out, byte)| *out = byte);
    };
    let ends = |pair: &[f32]| Some(quant::ends_of(pair[0], pair[1])?.map(bf16::to_le_bytes));
    let ends: Option<Vec<_>> = scales.chunks_exact(2).map(ends).collect();
    let dtype = if ends.is_some() { DType::Bf16 } else { DType::F32 };
    out[..4].copy_from_slice(&type_code(dtype).to_le_bytes());
    let out = &mut out[HEADER..];
    for (i, pair) in scales.chunks_exact(2).enumerate() {
        let (row, group) = (i / (per_row / 2), i % (per_row / 2));
        let at = (row / TILE_N * layout.groups() + group) * TILE_N + row % TILE_N;
        match &ends {
            Some(ends) => out[4 * at..4 * at + 4].copy_from_slice(ends[i].as_flattened()),
            None => {
                out[8 * at..8 * at + 4].copy_from_slice(&pair[0].to_le_bytes());
                out[8 * at + 4..8 * at + 8].copy_from_slice(&pair[1].to_le_bytes());
            }
        }
    }
}

/// Whether kernels of two types multiply activations of this type with this format; those of any type are
/// slower.
pub(super) fn has_kernels(x: DType, format: WeightFormat) -> bool {
    match format {
        WeightFormat::Float(dtype) => dtype == x && dtype != DType::F32,
        _ => x != DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes `at ..` of element `(row, col)` of a packed matrix, by the definition in `weights.h`.
    fn place(layout: Layout, row: usize, col: usize) -> usize {
        let (block, four, element) = (col / BLOCK_K, col % BLOCK_K / 4, col % 4);
        let four_bytes = layout.format.row_bytes(4);
        let vectors = 8 * four_bytes / VECTOR;
        let vector = four * four_bytes / VECTOR;
        let tile = row / TILE_N * layout.tile_bytes();
        tile + ((block * vectors + vector) * TILE_N + row % TILE_N) * VECTOR
            + four * four_bytes % VECTOR
            + layout.format.row_bytes(element + 1)
            - layout.format.row_bytes(1)
    }

    #[test]
    fn elements_are_where_lanes_look_for_them() {
        let formats = [
            WeightFormat::Float(DType::F32),
            WeightFormat::Float(DType::Bf16),
            WeightFormat::Int8,
            WeightFormat::Int4 { group: 32 },
        ];
        for format in formats {
            for (count, n, k) in [(1, 1, 1), (2, 33, 65), (3, 32, 64), (1, 40, 200)] {
                let layout = Layout::of(format, n, k).unwrap();
                let row_bytes = format.row_bytes(k);
                let bytes: Vec<u8> =
                    (0..count * n * row_bytes).map(|i| (i * 37 % 251) as u8).collect();
                let scales = vec![1.0; count * n * format.row_scales(k)];
                let data = WeightData { count, n, k, format, bytes: &bytes, scales: &scales };
                let packed = pack(&data, layout);
                let matrices = packed.chunks_exact(layout.matrix_bytes());
                for (packed, bytes) in matrices.zip(bytes.chunks_exact(n * row_bytes)) {
                    for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                        for col in 0..k {
                            let (at, size) = (place(layout, row, col), format.row_bytes(1));
                            let from = format.row_bytes(col + 1) - size;
                            let want = &bytes[from..from + size];
                            assert_eq!(&packed[at..at + size], want, "{format} {row} {col}");
                        }
                    }
                }
            }
        }
    }

    /// Scale and offset of a group of a row, by the definition in `weights.h`.
    fn scale(layout: Layout, scales: &[u8], row: usize, group: usize) -> (f32, f32) {
        let word = |at: usize| u32::from_le_bytes(scales[at..at + 4].try_into().unwrap());
        let at = (row / TILE_N * layout.groups() + group) * TILE_N + row % TILE_N;
        if word(0) == type_code(DType::F32) {
            let at = HEADER + 8 * at;
            return (f32::from_bits(word(at)), f32::from_bits(word(at + 4)));
        }
        let unpack = |bits: u32| bf16::from_bits(bits as u16).to_f32();
        let (low, high) = (unpack(word(HEADER + 4 * at)), unpack(word(HEADER + 4 * at) >> 16));
        ((high - low) / 15.0, low)
    }

    #[test]
    fn scales_are_where_lanes_look_for_them_in_as_few_bits_as_tell_them() {
        let (n, k, format) = (34, 65, WeightFormat::Int4 { group: 32 });
        let layout = Layout::of(format, n, k).unwrap();
        let value = |i: usize| ((i * 7919 % 1013) as f32 / 506.5 - 1.0).powi(3) / 3.0;
        let values: Vec<f32> = (0..n * k).map(value).collect();
        // As quantized here, and as if others had.
        for (dtype, factor) in [(DType::Bf16, 1.0), (DType::F32, 1.03)] {
            let mut coded = quant::quantize(format, k, &values).unwrap();
            coded.scales.iter_mut().for_each(|scale| *scale *= factor);
            let mut out = vec![0; layout.scale_bytes()];
            pack_scales(layout, 6, &coded.scales, &mut out);
            assert_eq!(out[..4], type_code(dtype).to_le_bytes());
            for (i, pair) in coded.scales.chunks_exact(2).enumerate() {
                let (step, offset) = scale(layout, &out, i / 3, i % 3);
                assert_eq!(offset, pair[1]);
                let size = offset.abs().max((15.0 * pair[0] + offset).abs());
                assert!(
                    (15.0 * (step - pair[0])).abs() <= 5.0 * size * f32::EPSILON,
                    "{step} {pair:?}"
                );
            }
        }
    }

    #[test]
    fn sizes_are_whole_blocks() {
        let layout = Layout::of(WeightFormat::Int4 { group: 128 }, 33, 130).unwrap();
        assert_eq!((layout.k_blocks(), layout.groups(), layout.scales_at()), (5, 2, 2 * 5 * 512));
        assert_eq!(layout.matrix_bytes(), 5120 + 2 * 2 * 256 + 256);
        let layout = Layout::of(WeightFormat::Float(DType::Bf16), 16, 0).unwrap();
        assert_eq!(layout.matrix_bytes(), 32 * 32 * 2);
        assert_eq!(Layout::of(WeightFormat::Int4 { group: 20 }, 1, 1), None);
        assert_eq!(Layout::of(WeightFormat::Float(DType::U8), 1, 1), None);
    }
}
