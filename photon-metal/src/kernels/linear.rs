//! Linear layers: which kernel, on how many threadgroups.
//!
//! # What is promised
//! A row's result does not depend on how many rows there are, nor on which: what a sum is, is said in `linear.h` and decided by
//! the weight and the types alone ([`Split`]); the number of rows only decides which kernel computes it. So chunks, batches and
//! resumed sequences agree to the bit.
//!
//! Kernels of one to four rows are chains of fma, the others multiplications of matrices. That these give the same bits is
//! found out when a device is opened ([`matrices_chain`]), not assumed; where they do not, only the latter are used.
//!
//! One kernel does not keep the promise: `linear_tensor`, for many rows on M5, whose tensor operations sum in an order of their
//! own. It is used where `PHOTON_METAL_FAST=1` asks for it.
use bytemuck::Zeroable;
use photon_core::{
    Activation, Cx, DType, Error, GroupedLinear, Linear, Result, Tensor, Weight, WeightData,
    WeightFormat,
};

use super::{
    elements::{activation_code, alignment, type_code, u32_of},
    weights::{Layout, TILE_N, has_kernels, pack as pack_weights},
};
use crate::{
    arguments::arguments,
    device::Gpu,
    driver::Driver,
    stream::{Pinned, Stream},
};

/// Up to so many rows, lanes have features; beyond, SIMD-groups multiply matrices.
const FEW_ROWS: usize = 4;
/// Up to so many rows, k is split among the SIMD-groups of a threadgroup.
const SKINNY_ROWS: usize = 64;
/// Up to so many features it is whatever the number of rows: tiles would be too few.
const SKINNY_N: usize = 256;
/// Rows and features of a tile.
const WIDE: usize = 64;
/// Features of a tile of tensor operations.
const TENSOR_N: usize = 128;
/// Up to so many rows of different matrices each finds those it shares its own with by itself.
const GROUPED_ROWS: usize = 128;
/// Up to so many of them, most share theirs with fewer than fill a multiplication.
const GROUPED_FEW_ROWS: usize = 32;
/// Most groups that rows are sorted by: their counts lie in threadgroup memory.
const MAX_GROUPS: usize = 7 << 10;
/// Most rows sorted at once.
const MAX_SORTED_ROWS: usize = 256 << 10;

/// Copies a weight matrix to the device in the layout its kernels like best.
pub(crate) fn pack<L: Driver>(gpu: &Gpu<L>, data: WeightData<'_>) -> Result<Weight<Gpu<L>>> {
    let Some(layout) = Layout::of(data.format, data.n, data.k) else {
        let (device, format) = (gpu.facts().name.clone(), data.format.to_string());
        return Err(Error::UnsupportedFormat { device, format });
    };
    let memory = gpu.load(&pack_weights(&data, layout))?;
    Ok(Weight::new(&data, memory, layout.matrix_bytes()))
}

arguments! {
    /// `LinearArgs` of `linear.h`.
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
        num_tiles: u32,
    }
}

/// How k is cut. Part of what a sum is, so only the weight decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    part_blocks: usize,
    parts: usize,
}

/// Up to so many features k is cut into 16 parts.
const NARROW: usize = 4096;
/// Shorter than so many blocks a part is not worth its sum.
const MIN_PART: usize = 4;

impl Split {
    /// A part is a SIMD-group where there are few rows: as many as keep enough loads under way, and more
    /// where few features make few threadgroups.
    fn of(n: usize, k_blocks: usize) -> Split {
        let most = if n <= NARROW { 16 } else { 8 };
        let part_blocks = k_blocks.div_ceil(most).max(MIN_PART);
        Split { part_blocks, parts: k_blocks.div_ceil(part_blocks) }
    }

    fn threads(self) -> u32 {
        u32_of(32 * self.parts)
    }
}

impl LinearArgs {
    /// What the weight and the types decide.
    fn new<L: Driver>(
        out: &Tensor<Gpu<L>>,
        x: &Tensor<Gpu<L>>,
        w: &Weight<Gpu<L>>,
    ) -> (Self, Split) {
        let layout = Layout::of(w.format(), w.n(), w.k()).expect("a weight that was packed");
        let split = Split::of(w.n(), layout.k_blocks());
        let args = LinearArgs {
            rows: u32_of(out.rows()),
            n: u32_of(w.n()),
            k: u32_of(w.k()),
            x_stride: u32_of(x.row_stride()),
            out_stride: u32_of(out.row_stride()),
            x_type: type_code(x.dtype()),
            out_type: type_code(out.dtype()),
            x_align: alignment(x),
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

    /// The addresses of what every kernel reads and writes, for the next launch.
    fn bind<L: Driver>(
        &mut self,
        stream: &mut Stream<L>,
        out: &Tensor<Gpu<L>>,
        x: &Tensor<Gpu<L>>,
        w: &Weight<Gpu<L>>,
    ) {
        self.out = stream.writes(out);
        self.x = stream.reads(x);
        self.w = stream.weight(w);
    }

    /// Adds row `i mod rows(table)` of a table to row `i` of the output.
    fn add_table<L: Driver>(&mut self, stream: &mut Stream<L>, table: &Tensor<Gpu<L>>) {
        self.add = stream.reads(table);
        self.add_stride = u32_of(table.row_stride());
        self.add_period = u32_of(table.rows());
        self.add_type = type_code(table.dtype());
    }
}

/// The kernels of one type of activations and one format. A name says what its kernel has in a threadgroup: rows, or
/// features in units of 8 by rows in units of 8.
struct Names {
    /// Of 1, 2 and 4 rows.
    few: [&'static str; 3],
    /// Of 8, 16 and 32 rows, and their features.
    skinny: [(&'static str, usize); 3],
    tile: &'static str,
    /// The same by tensor operations.
    tensor: &'static str,
    grouped_few: &'static str,
    /// Of 8 and 16 rows of a matrix at a time.
    grouped: [&'static str; 2],
    grouped_tile: &'static str,
}

macro_rules! names {
    ($types:literal) => {
        Names {
            few: [
                concat!("linear_1_", $types),
                concat!("linear_2_", $types),
                concat!("linear_4_", $types),
            ],
            skinny: [
                (concat!("linear_4x1_", $types), 32),
                (concat!("linear_4x2_", $types), 32),
                (concat!("linear_2x4_", $types), 16),
            ],
            tile: concat!("linear_8x8_", $types),
            tensor: concat!("linear_tensor_", $types),
            grouped_few: concat!("grouped_4_", $types),
            grouped: [concat!("grouped_4x1_", $types), concat!("grouped_4x2_", $types)],
            grouped_tile: concat!("grouped_8x8_", $types),
        }
    };
}

impl Names {
    /// Those of these types, if there are any.
    fn of(x: DType, format: WeightFormat) -> Option<&'static Names> {
        static BF16: [Names; 4] =
            [names!("bf16_float"), names!("bf16_int8"), names!("bf16_fp8"), names!("bf16_int4")];
        static F16: [Names; 4] =
            [names!("f16_float"), names!("f16_int8"), names!("f16_fp8"), names!("f16_int4")];
        let of_type = if x == DType::Bf16 { &BF16 } else { &F16 };
        let place = match format {
            WeightFormat::Float(_) => 0,
            WeightFormat::Int8 => 1,
            WeightFormat::Fp8 => 2,
            _ => 3,
        };
        has_kernels(x, format).then(|| &of_type[place])
    }
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
    let stream = &mut *cx.stream;
    let (mut args, split) = LinearArgs::new(out, x, w);
    args.bind(stream, out, x, w);
    args.bias = bias.map_or(0, |bias| stream.reads(bias));
    args.activation = activation_code(activation);
    if let Some(table) = table {
        args.add_table(stream, table);
    }
    let tiles = u32_of(n.div_ceil(TILE_N));
    let Some(names) = Names::of(x.dtype(), w.format()) else {
        let grid = [u32_of(rows.div_ceil(4)), tiles, 1];
        return stream.launch("linear_any", grid, split.threads(), &args);
    };
    if rows <= FEW_ROWS && cx.device.matrices_chain() {
        let kernel = names.few[rows.next_power_of_two().ilog2() as usize];
        return stream.launch(kernel, [tiles, 1, 1], split.threads(), &args);
    }
    if rows > SKINNY_ROWS && n > SKINNY_N {
        if cx.device.is_fast() && cx.device.facts().has_tensor_ops {
            let grid = [u32_of(n.div_ceil(TENSOR_N)), u32_of(rows.div_ceil(WIDE)), 1];
            return stream.launch(names.tensor, grid, 128, &args);
        }
        let grid = [u32_of(n.div_ceil(WIDE)), u32_of(rows.div_ceil(WIDE)), 1];
        return stream.launch(names.tile, grid, 128, &args);
    }
    let units = rows.div_ceil(8).next_power_of_two().min(4);
    let (kernel, features) = names.skinny[units.ilog2() as usize];
    let grid = [u32_of(n.div_ceil(features)), u32_of(rows.div_ceil(8 * units)), 1];
    stream.launch(kernel, grid, split.threads(), &args);
}

arguments! {
    /// `GroupRowsArgs` of `experts.metal`.
    struct GroupRowsArgs {
        groups: u64,
        tiles: u64,
        list: u64,
        rows: u32,
        count: u32,
        tile_rows: u32,
        num_tiles: u32,
    }
}

pub(crate) fn grouped_linear<L: Driver>(cx: &mut Cx<'_, Gpu<L>>, op: GroupedLinear<'_, Gpu<L>>) {
    let GroupedLinear { out, x, w, groups, accumulate } = op;
    let (rows, n) = (out.rows(), w.n());
    if rows == 0 || n == 0 {
        return;
    }
    let per_row = rows / x.rows();
    let stream = &mut *cx.stream;
    let (mut args, split) = LinearArgs::new(out, x, w);
    args.per_row = u32_of(per_row);
    let names = Names::of(x.dtype(), w.format()).filter(|_| w.count() <= MAX_GROUPS);
    if let Some(names) = names
        && rows > GROUPED_ROWS
    {
        // As many rows at a time as there is room to sort.
        let slice = (MAX_SORTED_ROWS / per_row).max(1) * per_row;
        for first in (0..rows).step_by(slice) {
            let range = first..rows.min(first + slice);
            let op = Slice {
                out: out.row_range(range.clone()),
                x: x.row_range(range.start / per_row..range.end / per_row),
                groups: groups.col_range(range),
            };
            sorted(stream, names.grouped_tile, args, &op, w, accumulate);
        }
        return;
    }
    args.bind(stream, out, x, w);
    args.groups = stream.reads(groups);
    if accumulate {
        args.add_table(stream, out);
    }
    let tiles = u32_of(n.div_ceil(TILE_N));
    let Some(names) = names else {
        return stream.launch("grouped_any", [args.rows, tiles, 1], split.threads(), &args);
    };
    let kernel = match rows {
        ..=GROUPED_FEW_ROWS if cx.device.matrices_chain() => names.grouped_few,
        ..=8 => names.grouped[0],
        _ => names.grouped[1],
    };
    let grid = [tiles, u32_of(rows.min(w.count())), 1];
    stream.launch(kernel, grid, split.threads(), &args);
}

/// Some rows of a grouped linear layer.
struct Slice<L: Driver> {
    out: Tensor<Gpu<L>>,
    x: Tensor<Gpu<L>>,
    groups: Tensor<Gpu<L>>,
}

/// Sorts rows by their matrix and multiplies them in tiles.
fn sorted<L: Driver>(
    stream: &mut Stream<L>,
    kernel: &'static str,
    mut args: LinearArgs,
    op: &Slice<L>,
    w: &Weight<Gpu<L>>,
    accumulate: bool,
) {
    let rows = op.out.rows();
    let tiles = rows.div_ceil(WIDE) + w.count().min(rows);
    let list_at = 3 * tiles * size_of::<u32>();
    let scratch = stream.scratch(list_at + rows * size_of::<u32>());
    let to = stream.writes_scratch(scratch);
    let sort = GroupRowsArgs {
        groups: stream.reads(&op.groups),
        tiles: to,
        list: to + list_at as u64,
        rows: u32_of(rows),
        count: args.count,
        tile_rows: u32_of(WIDE),
        num_tiles: u32_of(tiles),
    };
    let counts = u32_of(w.count() * size_of::<u32>());
    stream.launch_with("group_rows", [1, 1, 1], 512, &sort, counts);
    args.bind(stream, &op.out, &op.x, w);
    args.rows = u32_of(rows);
    args.tiles = stream.reads_scratch(scratch);
    args.num_tiles = u32_of(tiles);
    if accumulate {
        args.add_table(stream, &op.out);
    }
    let grid = [u32_of(w.n().div_ceil(WIDE)), u32_of(tiles), 1];
    stream.launch(kernel, grid, 128, &args);
}

arguments! {
    /// `ChainArgs` of `matrix_chain.metal`.
    struct ChainArgs {
        matrices: u64,
        differs: u64,
    }
}

/// Multiplications that a device is asked to do.
const QUESTIONS: usize = 64;

/// Whether a multiplication of matrices gives the bits of a chain of fma: asked with numbers of which every order of adding, and
/// every rounding in between, shows.
///
/// # Errors
/// If the device does not answer.
pub(crate) fn matrices_chain<L: Driver>(gpu: &Gpu<L>) -> Result<bool> {
    ask(gpu, "matrix_chain")
}

fn ask<L: Driver>(gpu: &Gpu<L>, kernel: &'static str) -> Result<bool> {
    let matrices: Vec<f32> = questions();
    let from = gpu.load(bytemuck::cast_slice(&matrices))?;
    let to = gpu.load(&[0xff; QUESTIONS * size_of::<u32>()])?;
    let from = Tensor::new(from, 0, [QUESTIONS, matrices.len() / QUESTIONS], DType::F32);
    let to = Tensor::<Gpu<L>>::new(to, 0, [QUESTIONS, 1], DType::I32);
    let mut stream = Stream::open(gpu.driver())?;
    let args = ChainArgs { matrices: stream.reads(&from), differs: stream.writes(&to) };
    stream.launch(kernel, [u32_of(QUESTIONS), 1, 1], 32, &args);
    let bytes = QUESTIONS * size_of::<u32>();
    let (answers, done) =
        stream.read_back(to.buffer(), 0..bytes, Pinned::new(gpu.driver(), bytes)?)?;
    gpu.driver().wait(&done)?;
    Ok(answers.as_ref().iter().all(|&byte| byte == 0))
}

/// Three matrices each: floats of both signs and of sizes within a factor of some thousand.
fn questions() -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = (state >> 8 & 15) as i32 - 8;
        ((state >> 12) as f32 / 524_288.0 - 1.0) * (size as f32).exp2()
    };
    (0..QUESTIONS * 3 * 64).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimMetal;

    #[test]
    fn another_order_of_adding_shows() {
        let gpu = SimMetal::open().unwrap();
        assert!(gpu.matrices_chain());
        assert!(!ask(&gpu, "matrix_chain!reversed").unwrap());
    }

    #[test]
    fn k_is_cut_into_parts_that_cover_it() {
        for n in [1, 4096, 4097] {
            for k_blocks in 1..300 {
                let Split { part_blocks, parts } = Split::of(n, k_blocks);
                assert!(parts <= 16 && part_blocks >= MIN_PART, "{n} {k_blocks}");
                assert!((parts - 1) * part_blocks < k_blocks && k_blocks <= parts * part_blocks);
            }
        }
    }
}
