//! How weight matrices lie on the device: the Rust side of `weights.cuh`, which says why.
use std::num::NonZero;

use photon_core::{DType, WeightData, WeightFormat};

use super::elements::type_code;

/// Features and elements of k of a block.
pub(super) const BLOCK_N: usize = 16;
pub(super) const BLOCK_K: usize = 64;
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
        self.n.div_ceil(BLOCK_N)
    }

    /// Bytes of 16 features.
    fn tile_bytes(self) -> usize {
        let elements = BLOCK_N * BLOCK_K * self.k_blocks();
        match self.format {
            WeightFormat::Float(dtype) => elements * dtype.size(),
            WeightFormat::Int8 | WeightFormat::Fp8 => elements,
            _ => elements / 2,
        }
    }

    /// Bytes from the beginning of a matrix to its scales.
    pub(super) fn scales_at(self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    /// `2^shift` halves of a block share a scale.
    pub(super) fn group_shift(self) -> u32 {
        match self.format {
            WeightFormat::Int4 { group } => (group / 32).ilog2(),
            _ => 0,
        }
    }

    /// Groups along k, those of padding counted.
    fn groups(self) -> usize {
        ((2 * self.k_blocks() - 1) >> self.group_shift()) + 1
    }

    fn num_scales(self) -> usize {
        match self.format {
            WeightFormat::Float(_) => 0,
            WeightFormat::Int8 | WeightFormat::Fp8 => self.tiles() * BLOCK_N,
            _ => self.tiles() * self.groups() * 2 * BLOCK_N,
        }
    }

    /// Bytes of a matrix.
    pub(super) fn matrix_bytes(self) -> usize {
        (self.scales_at() + 4 * self.num_scales()).next_multiple_of(ALIGNMENT)
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
        let (codes, tail) = out.split_at_mut(layout.scales_at());
        pack_scales(layout, per_row, &scales[matrix * n * per_row..][..n * per_row], tail);
        let rows = &bytes[matrix * n * row_bytes..][..n * row_bytes];
        let sources = (0..n)
            .step_by(BLOCK_N)
            .map(|first| &rows[first * row_bytes..n.min(first + BLOCK_N) * row_bytes]);
        tiles.extend(sources.zip(codes.chunks_exact_mut(layout.tile_bytes())));
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(bytes.len() / PACK_GRAIN + 1);
    let per_thread = tiles.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for tiles in tiles.chunks_mut(per_thread) {
            scope.spawn(move || {
                tiles.iter_mut().for_each(|(rows, out)| pack_tile(layout, row_bytes, rows, out));
            });
        }
    });
    out
}

/// Packs up to 16 rows.
fn pack_tile(layout: Layout, row_bytes: usize, rows: &[u8], out: &mut [u8]) {
    let padded = layout.tile_bytes() / BLOCK_N;
    if let WeightFormat::Float(_) = layout.format {
        for (row, out) in rows.chunks(row_bytes.max(1)).zip(out.chunks_exact_mut(padded)) {
            out[..row_bytes].copy_from_slice(row);
        }
        return;
    }
    let mut wide = vec![0; layout.tile_bytes()];
    for (row, wide) in rows.chunks(row_bytes.max(1)).zip(wide.chunks_exact_mut(padded)) {
        wide[..row_bytes].copy_from_slice(row);
    }
    let is_int4 = matches!(layout.format, WeightFormat::Int4 { .. });
    // A lane's elements of a half of a block are eight of either of two rows.
    let run = if is_int4 { 4 } else { 8 };
    let vectors = if is_int4 { 1 } else { 2 };
    for (block, out) in out.chunks_exact_mut(vectors * 512).enumerate() {
        for half in 0..2 {
            for lane in 0..32 {
                let at = (block * 8 + half * 4 + lane % 4) * run;
                let low = &wide[lane / 4 * padded + at..][..run];
                let high = &wide[(lane / 4 + 8) * padded + at..][..run];
                if is_int4 {
                    let out = &mut out[lane * 16 + half * 8..][..8];
                    out[..4].copy_from_slice(&step_of_nibbles(low, high, 0));
                    out[4..].copy_from_slice(&step_of_nibbles(low, high, 2));
                } else {
                    let out = &mut out[half * 512 + lane * 16..][..16];
                    for (pair, out) in out.chunks_exact_mut(4).enumerate() {
                        out[..2].copy_from_slice(&low[2 * pair..2 * pair + 2]);
                        out[2..].copy_from_slice(&high[2 * pair..2 * pair + 2]);
                    }
                }
            }
        }
    }
}

/// The word of a step: nibbles of bytes `first` and `first + 1`, of either row by turns, the lower ones in
/// the lower half.
fn step_of_nibbles(low: &[u8], high: &[u8], first: usize) -> [u8; 4] {
    let mut word = 0;
    let pairs = [low[first], high[first], low[first + 1], high[first + 1]];
    for (i, pair) in pairs.into_iter().map(u32::from).enumerate() {
        word |= (pair & 15) << (4 * i) | (pair >> 4) << (4 * i + 16);
    }
    word.to_le_bytes()
}

/// Lays out the scales of a matrix, `per_row` to a row.
fn pack_scales(layout: Layout, per_row: usize, scales: &[f32], out: &mut [u8]) {
    let mut put = |at: usize, scale: f32| {
        out[4 * at..4 * at + 4].copy_from_slice(&scale.to_le_bytes());
    };
    for (row, scales) in scales.chunks_exact(per_row.max(1)).enumerate() {
        let (tile, feature) = (row / BLOCK_N, row % BLOCK_N);
        match layout.format {
            WeightFormat::Int4 { .. } => {
                for (group, pair) in scales.chunks_exact(2).enumerate() {
                    let lane = (tile * layout.groups() + group) * 8 + feature % 8;
                    put(lane * 4 + feature / 8 * 2, pair[0]);
                    put(lane * 4 + feature / 8 * 2 + 1, pair[1]);
                }
            }
            _ => put(row, scales[0]),
        }
    }
}

/// Whether tensor cores multiply activations of this type with this format: exactly, but for the sum.
pub(super) fn is_exact_in(x: DType, format: WeightFormat) -> bool {
    match format {
        WeightFormat::Float(dtype) => dtype == x && dtype != DType::F32,
        _ => x != DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The element at `(row, col)` of a packed matrix of codes, by the definition in `weights.cuh`.
    fn code(packed: &[u8], layout: Layout, row: usize, col: usize) -> u8 {
        let (tile, block) = (row / BLOCK_N, col / BLOCK_K);
        let base = (tile * layout.k_blocks() + block) * layout.tile_bytes() / layout.k_blocks();
        let is_here = |lane: usize, i: usize| {
            let feature = lane / 4 + 8 * (i / 2 % 2);
            let k = 32 * (i / 16) + 8 * (lane % 4) + 4 * (i / 8 % 2) + 2 * (i / 4 % 2) + i % 2;
            feature == row % BLOCK_N && k == col % BLOCK_K
        };
        let places = (0..32).flat_map(|lane| (0..32).map(move |i| (lane, i)));
        let (lane, i) = places.into_iter().find(|&(lane, i)| is_here(lane, i)).unwrap();
        match layout.format {
            WeightFormat::Int4 { .. } => {
                let at = base + lane * 16 + i / 8 * 4;
                let word = u32::from_le_bytes(packed[at..at + 4].try_into().unwrap());
                (word >> (4 * (i % 8 / 2) + 16 * (i % 2)) & 15) as u8
            }
            _ => packed[base + 512 * (i / 16) + 16 * lane + i % 16],
        }
    }

    #[test]
    fn codes_are_where_lanes_look_for_them() {
        for format in [WeightFormat::Int8, WeightFormat::Fp8, WeightFormat::Int4 { group: 32 }] {
            for (count, n, k) in [(1, 1, 1), (2, 33, 65), (3, 16, 64), (1, 40, 200)] {
                let layout = Layout::of(format, n, k).unwrap();
                let bytes: Vec<u8> =
                    (0..count * n * format.row_bytes(k)).map(|i| (i * 37 % 251) as u8).collect();
                let scales = vec![1.0; count * n * format.row_scales(k)];
                let data = WeightData { count, n, k, format, bytes: &bytes, scales: &scales };
                let packed = pack(&data, layout);
                let matrices = packed.chunks_exact(layout.matrix_bytes());
                for (packed, bytes) in matrices.zip(bytes.chunks_exact(bytes.len() / count)) {
                    for (row, bytes) in bytes.chunks_exact(format.row_bytes(k)).enumerate() {
                        for col in 0..k {
                            let want = match format {
                                WeightFormat::Int4 { .. } => bytes[col / 2] >> (4 * (col % 2)) & 15,
                                _ => bytes[col],
                            };
                            assert_eq!(
                                code(packed, layout, row, col),
                                want,
                                "{format} {row} {col}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_are_whole_blocks() {
        let layout = Layout::of(WeightFormat::Int4 { group: 128 }, 17, 130).unwrap();
        assert_eq!((layout.k_blocks(), layout.groups(), layout.scales_at()), (3, 2, 2 * 3 * 512));
        assert_eq!(layout.matrix_bytes(), (3072 + 2 * 2 * 128usize).next_multiple_of(256));
        let layout = Layout::of(WeightFormat::Float(DType::Bf16), 16, 0).unwrap();
        assert_eq!(layout.matrix_bytes(), 16 * 64 * 2);
        assert_eq!(Layout::of(WeightFormat::Int4 { group: 20 }, 1, 1), None);
        assert_eq!(Layout::of(WeightFormat::Float(DType::U8), 1, 1), None);
    }
}
