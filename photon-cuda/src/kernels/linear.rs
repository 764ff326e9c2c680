//! Linear layers: which kernel, on how many blocks.
//!
//! # What is promised
//! A row's result does not depend on how many rows there are, nor on which: what a sum is, is said in `linear.cuh` and decided
//! by the weight and the types alone ([`Split`]); the number of rows only decides which kernel computes it. So chunks, batches and
//! resumed sequences agree to the bit.
//!
//! That is why a vendor's library has no place here: it sums in another order for every number of rows, and it rounds twice
//! where a bias of another type than the output is added. It also is why no activations are rounded to 8 bits, though some
//! tensor cores would be twice as fast with them: a weight's format says how the weight is rounded, and nothing else is.
//!
//! One kernel does not keep the promise: `linear_wgmma`, for many rows on sm_90, whose multiplications take other sixteen
//! elements of k together. It is used where `PHOTON_CUDA_FAST=1` asks for it.
use bytemuck::{Pod, Zeroable};
use photon_core::{
    Activation, Cx, DType, Error, GroupedLinear, Linear, Result, Tensor, Weight, WeightData,
    WeightFormat,
};

use super::{
    elements::{activation_code, alignment, type_code, u32_of},
    weights::{BLOCK_K, BLOCK_N, Layout, is_exact_in, pack as pack_weights},
};
use crate::{
    device::Gpu,
    driver::{Driver, TensorMap, TensorMapBits},
    stream::{COUNTER_BYTES, Stream, WORKSPACE_BYTES},
};

/// Up to so many rows, weights are streamed through registers.
const SKINNY_ROWS: usize = 128;
/// Up to so many features they are whatever the number of rows: tiles would be too few.
const SKINNY_N: usize = 256;
/// Rows and features of a tile; rows of a tile of one group.
const TILE: usize = 128;
const GROUPED_TILE_ROWS: usize = 64;
/// Most groups that rows are sorted by: their counts lie in shared memory.
const MAX_GROUPS: usize = 8192;

/// Copies a weight matrix to the device in the layout its kernels like best.
pub(crate) fn pack<L: Driver>(gpu: &Gpu<L>, data: WeightData<'_>) -> Result<Weight<Gpu<L>>> {
    let Some(layout) = Layout::of(data.format, data.n, data.k) else {
        let (device, format) = (gpu.facts().name.clone(), data.format.to_string());
        return Err(Error::UnsupportedFormat { device, format });
    };
    let memory = gpu.load(&pack_weights(&data, layout))?;
    Ok(Weight::new(&data, memory, layout.matrix_bytes()))
}

/// `LinearArgs` of `linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LinearArgs {
    out: u64,
    x: u64,
    w: u64,
    bias: u64,
    add: u64,
    groups: u64,
    tiles: u64,
    rows: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    out_stride: u32,
    add_stride: u32,
    add_period: u32,
    x_type: u32,
    out_type: u32,
    add_type: u32,
    x_align: u32,
    out_align: u32,
    add_align: u32,
    activation: u32,
    format: u32,
    k_blocks: u32,
    part_blocks: u32,
    parts: u32,
    scales: u32,
    group_shift: u32,
    matrix_bytes: u32,
    count: u32,
    per_row: u32,
    padding: u32,
}

/// How k is cut. Part of what a sum is, so only the weight decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    part_blocks: usize,
    parts: usize,
}

impl Split {
    /// A part is a warp of a block where there are few rows: as many as keep enough loads under way, and more
    /// where few features make few blocks. Shorter than two blocks of k a part is not worth its sum.
    fn of(n: usize, k_blocks: usize) -> Split {
        let most = if n <= NARROW { 16 } else { 8 };
        let part_blocks = k_blocks.div_ceil(most).max(2);
        Split { part_blocks, parts: k_blocks.div_ceil(part_blocks) }
    }

    fn threads(self) -> u32 {
        u32_of(32 * self.parts)
    }
}

/// Up to so many features k is cut into 16 parts.
const NARROW: usize = 1024;

impl LinearArgs {
    fn new<L: Driver>(
        stream: &mut Stream<L>,
        out: &Tensor<Gpu<L>>,
        x: &Tensor<Gpu<L>>,
        w: &Weight<Gpu<L>>,
    ) -> (Self, Split) {
        let layout = Layout::of(w.format(), w.n(), w.k()).expect("a weight that was packed");
        let split = Split::of(w.n(), layout.k_blocks());
        let args = LinearArgs {
            out: stream.address(out),
            x: stream.address(x),
            w: stream.weight_address(w),
            rows: u32_of(out.rows()),
            n: u32_of(w.n()),
            k: u32_of(w.k()),
            x_stride: u32_of(x.row_stride()),
            out_stride: u32_of(out.row_stride()),
            x_type: type_code(x.dtype()),
            out_type: type_code(out.dtype()),
            x_align: alignment(x),
            out_align: alignment(out),
            format: layout.code(),
            k_blocks: u32_of(layout.k_blocks()),
            part_blocks: u32_of(split.part_blocks),
            parts: u32_of(split.parts),
            scales: u32_of(layout.scales_at()),
            group_shift: layout.group_shift(),
            matrix_bytes: u32_of(layout.matrix_bytes()),
            count: u32_of(w.count()),
            per_row: 1,
            ..LinearArgs::zeroed()
        };
        (args, split)
    }

    /// Adds row `i mod rows(table)` of a table to row `i` of the output.
    fn add_table<L: Driver>(&mut self, stream: &mut Stream<L>, table: &Tensor<Gpu<L>>) {
        self.add = stream.address(table);
        self.add_stride = u32_of(table.row_stride());
        self.add_period = u32_of(table.rows());
        self.add_type = type_code(table.dtype());
        self.add_align = alignment(table);
    }
}

/// The kernels of one type of activations and one format. Of a block's features, in units of 16, and rows, in units of 8, a name
/// says how many.
struct Names {
    /// By features, 1 or 2, and rows: 1, 2, 4 and 8.
    skinny: [[&'static str; 4]; 2],
    tile: &'static str,
    /// By rows: 1 and 2.
    grouped: [&'static str; 2],
    grouped_tile: &'static str,
    /// Shared memory of a tile's stage but for its activations, and stages.
    stage_bytes: usize,
    stages: usize,
}

macro_rules! names {
    ($types:literal, $stage_bytes:literal, $stages:literal) => {
        Names {
            skinny: [
                [
                    concat!("linear_1x1_", $types),
                    concat!("linear_1x2_", $types),
                    concat!("linear_1x4_", $types),
                    concat!("linear_1x4_", $types),
                ],
                [
                    concat!("linear_2x1_", $types),
                    concat!("linear_2x2_", $types),
                    concat!("linear_2x4_", $types),
                    concat!("linear_2x8_", $types),
                ],
            ],
            tile: concat!("linear_8x16_", $types),
            grouped: [concat!("grouped_1x1_", $types), concat!("grouped_1x2_", $types)],
            grouped_tile: concat!("grouped_8x8_", $types),
            stage_bytes: $stage_bytes,
            stages: $stages,
        }
    };
}

impl Names {
    /// Those of tensor cores, if they multiply these types.
    fn of(x: DType, format: WeightFormat) -> Option<&'static Names> {
        static BF16: [Names; 4] = [
            names!("bf16_float", 16384, 3),
            names!("bf16_int8", 8192, 4),
            names!("bf16_fp8", 8192, 4),
            names!("bf16_int4", 6144, 4),
        ];
        static F16: [Names; 4] = [
            names!("f16_float", 16384, 3),
            names!("f16_int8", 8192, 4),
            names!("f16_fp8", 8192, 4),
            names!("f16_int4", 6144, 4),
        ];
        let of_type = if x == DType::Bf16 { &BF16 } else { &F16 };
        let place = match format {
            WeightFormat::Float(_) => 0,
            WeightFormat::Int8 => 1,
            WeightFormat::Fp8 => 2,
            _ => 3,
        };
        is_exact_in(x, format).then(|| &of_type[place])
    }

    /// Shared memory of tiles of so many rows.
    fn tile_bytes(&self, rows: usize) -> u32 {
        u32_of(self.stages * (self.stage_bytes + rows * 128))
    }
}

/// Shared memory for the sums of a block: one or two buffers of 16 features by 8 rows for each part.
fn skinny_bytes(split: Split, features: usize, rows: usize) -> u32 {
    u32_of(rows.min(2) * split.parts * features * 16 * 8 * size_of::<f32>())
}

pub(crate) fn linear<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: Linear<'_, Gpu<L>>) {
    let Linear { out, x, w, bias, activation, accumulate } = op;
    let table = accumulate.then(|| out.view());
    run(cx, out, x, w, bias, activation, table.as_ref());
}

/// `out[i] = activation(x[i] w^T + bias) + table[i mod rows(table)]`; `table` may be `out`.
pub(super) fn run<L: Driver>(
    cx: &mut Cx<'_, Gpu<L>>,
    out: &Tensor<Gpu<L>>,
    x: &Tensor<Gpu<L>>,
    w: &Weight<Gpu<L>>,
    bias: Option<&Tensor<Gpu<L>>>,
    activation: Activation,
    table: Option<&Tensor<Gpu<L>>>,
) {
    let (rows, n) = (out.rows(), w.n());
    if rows == 0 || n == 0 {
        return;
    }
    let multiprocessors = cx.device.facts().multiprocessors as usize;
    let stream = &mut *cx.stream;
    let (mut args, split) = LinearArgs::new(stream, out, x, w);
    args.bias = bias.map_or(0, |bias| stream.address(bias));
    args.activation = activation_code(activation);
    if let Some(table) = table {
        args.add_table(stream, table);
    }
    let Some(names) = Names::of(x.dtype(), w.format()) else {
        let grid = [u32_of(rows.div_ceil(4)), u32_of(n.div_ceil(BLOCK_N)), 1];
        return stream.launch("linear_any", grid, [split.threads(), 1, 1], 0, &args);
    };
    if rows > SKINNY_ROWS && n > SKINNY_N {
        let is_wgmma = cx.device.is_fast() && matches!(w.format(), WeightFormat::Float(_));
        if is_wgmma && let Some((wgmma, features)) = WgmmaArgs::new(cx.device, &args, x.dtype()) {
            let kernel = match (x.dtype(), features) {
                (DType::Bf16, 128) => "linear_wgmma_128_bf16",
                (DType::Bf16, _) => "linear_wgmma_256_bf16",
                (_, 128) => "linear_wgmma_128_f16",
                _ => "linear_wgmma_256_f16",
            };
            let blocks = (wgmma.row_tiles * wgmma.feature_tiles).min(u32_of(multiprocessors));
            return stream.launch(kernel, [blocks, 1, 1], [384, 1, 1], WGMMA_BYTES, &wgmma);
        }
        let grid = [u32_of(n.div_ceil(TILE)), u32_of(rows.div_ceil(TILE)), 1];
        return stream.launch(names.tile, grid, [256, 1, 1], names.tile_bytes(TILE), &args);
    }
    // Twice the features halve what is read of activations, where there are blocks enough for every processor.
    let is_wide = n > NARROW && (n.div_ceil(2 * BLOCK_N) >= multiprocessors || rows > 32);
    let (features, most) = if is_wide { (2, 8) } else { (1, 4) };
    let units = rows.div_ceil(8).next_power_of_two().min(most);
    let kernel = names.skinny[features - 1][units.ilog2() as usize];
    let grid = [u32_of(n.div_ceil(features * BLOCK_N)), u32_of(rows.div_ceil(8 * units)), 1];
    let shared = skinny_bytes(split, features, units);
    stream.launch(kernel, grid, [split.threads(), 1, 1], shared, &args);
}

/// `WgmmaArgs` of `linear_wgmma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct WgmmaArgs {
    x: TensorMapBits,
    w: TensorMapBits,
    linear: LinearArgs,
    row_tiles: u32,
    feature_tiles: u32,
    padding: [u32; 8],
}

/// Shared memory of its kernels: 192 KiB of stages, room for the output, and what begins at a multiple of 1 KiB.
const WGMMA_BYTES: u32 = (192 << 10) + 8 * 16 * 36 * 4 + 1024;

impl WgmmaArgs {
    /// The arguments and the features of a tile, if this is sm_90 and its copy engine can read the activations.
    fn new<L: Driver>(gpu: &Gpu<L>, args: &LinearArgs, dtype: DType) -> Option<(Self, usize)> {
        let facts = gpu.facts();
        if facts.capability != (9, 0) || args.x_align < 16 || facts.shared_bytes < WGMMA_BYTES {
            return None;
        }
        let (rows, n) = (args.rows as usize, args.n as usize);
        let row_tiles = rows.div_ceil(TILE);
        // The larger tile reads less, if there are enough of it.
        let is_large = row_tiles * n.div_ceil(256) >= facts.multiprocessors as usize;
        let features = if is_large { 256 } else { 128 };
        let size = dtype.size() as u64;
        let map = |address, cols: u32, rows: usize, stride: u64, tile_rows: usize| {
            let dims = [u64::from(cols), rows as u64];
            let tile = [u32_of(BLOCK_K), u32_of(tile_rows)];
            gpu.tensor_map(&TensorMap { address, dtype, dims, row_bytes: stride * size, tile })
        };
        let stride = u64::from(args.k_blocks) * BLOCK_K as u64;
        let wgmma = WgmmaArgs {
            x: map(args.x, args.k, rows, u64::from(args.x_stride), TILE)?,
            w: map(args.w, u32_of(stride as usize), n, stride, features)?,
            linear: *args,
            row_tiles: u32_of(row_tiles),
            feature_tiles: u32_of(n.div_ceil(features)),
            padding: [0; 8],
        };
        Some((wgmma, features))
    }
}

/// `GroupRowsArgs` of `experts.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GroupRowsArgs {
    groups: u64,
    tiles: u64,
    list: u64,
    rows: u32,
    count: u32,
    tile_rows: u32,
    tiles_len: u32,
}

pub(crate) fn grouped_linear<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: GroupedLinear<'_, Gpu<L>>) {
    let GroupedLinear { out, x, w, groups, accumulate } = op;
    let (rows, n) = (out.rows(), w.n());
    if rows == 0 || n == 0 {
        return;
    }
    let per_row = rows / x.rows();
    let stream = &mut *cx.stream;
    let (mut args, split) = LinearArgs::new(stream, out, x, w);
    args.groups = stream.address(groups);
    args.per_row = u32_of(per_row);
    if accumulate {
        args.add_table(stream, out);
    }
    let threads = [split.threads(), 1, 1];
    let names = Names::of(x.dtype(), w.format()).filter(|_| w.count() <= MAX_GROUPS);
    let Some(names) = names else {
        let grid = [args.rows, u32_of(n.div_ceil(BLOCK_N)), 1];
        return stream.launch("grouped_any", grid, threads, 0, &args);
    };
    if rows <= SKINNY_ROWS {
        let units = if rows <= 8 { 1 } else { 2 };
        let grid = [u32_of(n.div_ceil(BLOCK_N)), u32_of(rows.min(w.count())), 1];
        let shared = skinny_bytes(split, 1, units);
        return stream.launch(names.grouped[units - 1], grid, threads, shared, &args);
    }
    // As many rows at a time as the workspace has room to sort.
    let room = (WORKSPACE_BYTES - COUNTER_BYTES) / size_of::<u32>() / 2 - 3 * MAX_GROUPS;
    let workspace = stream.workspace() + COUNTER_BYTES as u64;
    let slice = (room / per_row).max(1) * per_row;
    for first in (0..rows).step_by(slice) {
        let some = slice.min(rows - first);
        let tiles = some.div_ceil(GROUPED_TILE_ROWS) + w.count().min(some);
        let out = out.row_range(first..first + some);
        let x = x.row_range(first / per_row..(first + some) / per_row);
        args.out = stream.address(&out);
        args.x = stream.address(&x);
        args.rows = u32_of(some);
        args.groups = stream.address(groups) + (first * size_of::<i32>()) as u64;
        args.tiles = workspace;
        if accumulate {
            args.add_table(stream, &out);
        }
        let sort = GroupRowsArgs {
            groups: args.groups,
            tiles: workspace,
            list: workspace + (3 * tiles * size_of::<u32>()) as u64,
            rows: args.rows,
            count: args.count,
            tile_rows: u32_of(GROUPED_TILE_ROWS),
            tiles_len: u32_of(tiles),
        };
        let shared = u32_of(w.count() * size_of::<u32>());
        stream.launch("group_rows", [1, 1, 1], [1024, 1, 1], shared, &sort);
        let grid = [u32_of(n.div_ceil(TILE)), u32_of(tiles), 1];
        let shared = names.tile_bytes(GROUPED_TILE_ROWS);
        stream.launch(names.grouped_tile, grid, [256, 1, 1], shared, &args);
    }
}
