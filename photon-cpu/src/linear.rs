//! Matrix products with packed weights.
//!
//! Few rows go straight through the panels, which is as fast as memory delivers them. Many rows are
//! blocked for the caches: a task owns a rectangle of the output, takes a block of k at a time, widens that part of its panels to f32 once, and runs its rows past it. Either way the
//! sum of an output element is the same chain of additions (see [`tile`]), so the two agree to the
//! bit.
//!
//! Deliberately absent: splitting k over threads, which would make a sum depend on their number.
#![allow(unsafe_code, reason = "views of packed weights, and disjoint pieces of the output")]

use std::{marker::PhantomData, ops::Range};

use photon_core::{
    Activation, Error, GroupedLinear, Linear, Result, Tensor, Weight, WeightData, WeightFormat,
    quant,
};

use crate::{
    Cpu,
    elements::{Rows, RowsMut, with_float},
    isa::Isa,
    kernels::index,
    memory::Buffer,
    pool::Pool,
    scratch::with_scratch,
    simd::{self, Op, Simd},
};
use finish::{Epilogue, Piece};
use layout::{Layout, PANEL, ROWS, WithFormat};
use tile::{Format, Scales, Single, Tile};

mod finish;
mod layout;
mod tile;

#[cfg(test)]
mod tests;

/// Up to so many rows, panels are read as they are.
const DIRECT_ROWS: usize = 8;
/// Floats that the sums of a panel and so many rows take.
const DIRECT_SUMS: usize = DIRECT_ROWS.next_multiple_of(ROWS) * PANEL;
/// Bytes of packed activations at a time: they are shared by all threads and should stay in L3.
const ACTIVATION_BYTES: usize = 24 << 20;
/// Strips that pass by a block of columns before the next: 144 rows of 256 steps take 144 KiB of L2.
const STRIPS_IN_L2: usize = 24;
/// Most panels and strips of a task: 256 KiB of widened columns, 768 KiB of sums.
const MAX_TASK: (usize, usize) = (4, 128);

/// Copies a weight matrix to a buffer, in the layout the kernels of `isa` read.
///
/// # Panics
/// If `data.bytes` is not `[count, n, k]` elements.
pub(crate) fn pack(isa: Isa, data: WeightData<'_>, pool: &Pool) -> Result<Weight<Cpu>> {
    let WeightData { count, n, k, format, bytes, scales } = data;
    let layout = Layout::of(isa, format).ok_or_else(|| Error::UnsupportedFormat {
        device: "cpu".into(),
        format: format.to_string(),
    })?;
    let per_row = format.row_scales(k);
    assert_eq!(
        bytes.len(),
        count * n * format.row_bytes(k),
        "bytes of {count} x [{n}, {k}] {format}"
    );
    assert_eq!(scales.len(), count * n * per_row, "scales of {count} x [{n}, {k}] {format}");
    let words =
        matches!(format, WeightFormat::Int4 { .. }).then(|| ends_of_groups(scales)).flatten();
    let ends = words.is_some();
    let (per_row, scales) = match &words {
        Some(words) => (per_row / 2, &words[..]),
        None => (per_row, scales),
    };
    let matrix_bytes = layout.bytes((n, k), ends).unwrap_or(usize::MAX);
    let buffer = Buffer::new(matrix_bytes.saturating_mul(count))?;
    // SAFETY: `as_ptr` is valid for `len` bytes while `buffer` lives, they are zeroed, and nobody else
    // has a clone yet.
    let out = unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), buffer.len()) };
    for matrix in 0..if matrix_bytes == 0 { 0 } else { count } {
        let out = &mut out[matrix * matrix_bytes..(matrix + 1) * matrix_bytes];
        let tail = layout.num_scales((n, k), ends) * size_of::<f32>();
        let (panels, tail) = out.split_at_mut(matrix_bytes - tail);
        let bytes = &bytes[matrix * (bytes.len() / count)..(matrix + 1) * (bytes.len() / count)];
        match layout {
            Layout::Int4(lanes, _) => layout::pack_nibbles(pool, (n, k), (lanes, 1), bytes, panels),
            Layout::Int4Quads(lanes, _) => {
                layout::pack_nibbles(pool, (n, k), (lanes, 4), bytes, panels);
            }
            // Two columns of eight are a vector.
            Layout::Int4Blocks(_) => layout::pack_nibbles(pool, (n, k), (2, 8), bytes, panels),
            _ => layout.with(PackWeights { pool, dims: (n, k), bytes, out: panels }),
        }
        if per_row > 0 {
            let scales = &scales[matrix * n * per_row..(matrix + 1) * n * per_row];
            let (bytes, tail) = (bytemuck::cast_slice(scales), bytemuck::cast_slice_mut(tail));
            // A panel's rows' first words, then their second.
            layout::pack_weights::<Single<f32>>(pool, (n, per_row), bytes, tail);
        }
    }
    Ok(Weight::new(&data, buffer, matrix_bytes))
}

/// A word of both ends for each group of int4, if all of them have such; see [`Scales`].
fn ends_of_groups(scales: &[f32]) -> Option<Vec<f32>> {
    let word = |&[scale, offset]: &[f32; 2]| {
        let [low, high] = quant::ends_of(scale, offset)?.map(|end| u32::from(end.to_bits()));
        Some(f32::from_bits(high << 16 | low))
    };
    scales.as_chunks::<2>().0.iter().map(word).collect()
}

/// See [`Linear`].
pub(crate) fn linear(cpu: &Cpu, op: Linear<'_, Cpu>) {
    let Linear { out, x, w, bias, activation, accumulate } = op;
    layout_of(cpu, w).with(Run {
        cpu,
        layout: layout_of(cpu, w),
        w,
        x,
        out,
        then: Then { bias: bias.map(|bias| Rows::new(bias).all()), activation, accumulate },
        rows: Members::All,
    });
}

/// See [`GroupedLinear`].
pub(crate) fn grouped_linear(cpu: &Cpu, op: GroupedLinear<'_, Cpu>) {
    let GroupedLinear { out, x, w, groups, accumulate } = op;
    let groups = Rows::<i32>::new(groups).all();
    // Rows by group, those without one left out: a counting sort, which keeps their order.
    let group = |row: usize| index(groups[row], w.count());
    let mut ends = vec![0; w.count()];
    (0..groups.len()).filter_map(group).for_each(|group| ends[group] += 1);
    let mut members = vec![0; ends.iter().sum()];
    let mut start = 0;
    for end in &mut ends {
        start += std::mem::replace(end, start);
    }
    for row in 0..groups.len() {
        if let Some(group) = group(row) {
            members[ends[group]] = row;
            ends[group] += 1;
        }
    }
    if members.is_empty() {
        return;
    }
    let per_row = groups.len() / x.rows();
    layout_of(cpu, w).with(Run {
        cpu,
        layout: layout_of(cpu, w),
        w,
        x,
        out,
        then: Then { bias: None, activation: Activation::None, accumulate },
        rows: Members::Groups { members: &members, ends: &ends, per_row },
    });
}

fn layout_of(cpu: &Cpu, w: &Weight<Cpu>) -> Layout {
    Layout::of(cpu.isa(), w.format()).expect("packed by `pack`")
}

/// Which rows of the output go through which matrix.
#[derive(Clone, Copy)]
enum Members<'a> {
    /// All through the only one.
    All,
    /// Through matrix `g` those in `members[ends[g - 1] .. ends[g]]`; row `i` of the output reads row
    /// `i / per_row` of the input.
    Groups { members: &'a [usize], ends: &'a [usize], per_row: usize },
}

/// What is done to a sum.
#[derive(Clone, Copy)]
struct Then<'a> {
    bias: Option<&'a [f32]>,
    activation: Activation,
    accumulate: bool,
}

struct PackWeights<'a> {
    pool: &'a Pool,
    dims: (usize, usize),
    bytes: &'a [u8],
    out: &'a mut [u8],
}

impl WithFormat for PackWeights<'_> {
    type Output = ();

    fn call<F: Format>(self) {
        let PackWeights { pool, dims, bytes, out } = self;
        layout::pack_weights::<F>(pool, dims, bytes, bytemuck::cast_slice_mut(out));
    }
}

struct Run<'a> {
    cpu: &'a Cpu,
    layout: Layout,
    w: &'a Weight<Cpu>,
    x: &'a Tensor<Cpu>,
    out: &'a mut Tensor<Cpu>,
    then: Then<'a>,
    rows: Members<'a>,
}

impl WithFormat for Run<'_> {
    type Output = ();

    fn call<F: Format>(self) {
        simd::dispatch_product(self.cpu.isa(), RunFormat::<F> { run: self, format: PhantomData });
    }
}

struct RunFormat<'a, F> {
    run: Run<'a>,
    format: PhantomData<F>,
}

impl<F: Format> Op for RunFormat<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        if const { tile::suits::<S, F>() } {
            record::<S, F>(s, self.run);
        } else {
            unreachable!("packed for another instruction set");
        }
    }
}

fn record<S: Simd, F: Format>(s: S, run: Run<'_>) {
    let Run { cpu, layout, w, x, out, then, rows } = run;
    let Then { bias, activation, accumulate } = then;
    // SAFETY: `pack` filled the whole buffer, which `w` keeps alive, with elements of this format, and
    // what writes to packed weights later is an operation like others (the stream).
    let bytes = unsafe { std::slice::from_raw_parts(w.buffer().as_ptr(), w.buffer().len()) };
    let (pool, n, k) = (cpu.pool(), w.n(), w.k());
    // What is packed with ends is smaller.
    let ends = layout.bytes((n, k), true) == Some(w.matrix_bytes());
    let tail = layout.num_scales((n, k), ends) * size_of::<f32>();
    with_float!(out.dtype(), O => {
        let out = RowsMut::<O>::new(out);
        let through = |matrix: usize, number: usize, members: Option<&[usize]>, per_row: usize| {
            let source = |row: usize| members.map_or(row, |members| members[row] / per_row);
            let pack = |rows: (usize, usize), packed: &mut [F::Activation]| {
                with_float!(x.dtype(), X => {
                    let x = Rows::new(x);
                    layout::pack_activations::<S, F, X>(s, pool, x, &source, rows, packed);
                });
            };
            let matrix = &bytes[matrix * w.matrix_bytes()..(matrix + 1) * w.matrix_bytes()];
            let (weights, scales) = matrix.split_at(w.matrix_bytes() - tail);
            let (weights, scales) = (bytemuck::cast_slice(weights), bytemuck::cast_slice(scales));
            let columns = layout.scales_columns().then_some(scales);
            let epilogue =
                Epilogue::<O> { out, members, scales: columns, bias, activation, accumulate };
            // SAFETY: `Product` stores each element once, and no row has two matrices.
            let store = |piece: Piece<'_>| unsafe { finish::store_piece(s, &epilogue, piece) };
            let scales = Scales { words: scales, ends };
            Product::<S, F> { s, pool, n, k, weights, scales }.compute(number, &pack, &store);
        };
        match rows {
            Members::All => through(0, x.rows(), None, 1),
            Members::Groups { members, ends, per_row } => {
                let mut start = 0;
                for (matrix, &end) in ends.iter().enumerate().filter(|&(_, &end)| end > 0) {
                    if start < end {
                        through(matrix, end - start, Some(&members[start..end]), per_row);
                    }
                    start = end;
                }
            }
        }
    });
}

/// Packs rows `first .. first + count`.
type Pack<'a, F> = &'a dyn Fn((usize, usize), &mut [<F as Format>::Activation]);
/// Stores a finished piece.
type Store<'a> = &'a (dyn Fn(Piece<'_>) + Sync);

/// A product's constant parts.
#[derive(Clone, Copy)]
struct Product<'a, S, F: Format> {
    s: S,
    pool: &'a Pool,
    n: usize,
    k: usize,
    weights: &'a [F::Weight],
    /// Those of groups of steps, panel by panel.
    scales: Scales<'a>,
}

impl<S: Simd, F: Format> Product<'_, S, F> {
    /// Columns of a full-height tile.
    const WIDTH: usize = tile::widest::<S, F>(ROWS) * S::LANES;
    /// Whether tiles of many rows read the panels as they are: there is nothing to widen, and where
    /// steps are single a panel is as wide as a tile, so that it is read in one stretch.
    const AS_PACKED: bool = !F::WIDEN && (F::PER_STEP > 1 || Self::WIDTH == PANEL);

    fn compute(self, rows: usize, pack: Pack<'_, F>, store: Store<'_>) {
        let strip_len = layout::strip_len::<F>(self.k);
        let depth = layout::depth::<F>(layout::steps::<F>(self.k));
        let strip_bytes = strip_len * size_of::<F::Activation>();
        let rows_at_once = (ACTIVATION_BYTES / strip_bytes).max(1) * ROWS;
        for first in (0..rows).step_by(rows_at_once) {
            let count = rows_at_once.min(rows - first);
            let floats = count.div_ceil(ROWS) * strip_bytes / size_of::<f32>();
            with_scratch(floats, |packed| {
                let packed = bytemuck::cast_slice_mut(packed);
                pack((first, count), packed);
                let strips = Strips::<F> { packed, strip_len, depth, first, count };
                if count <= DIRECT_ROWS {
                    self.direct(strips, store);
                } else {
                    self.blocked(strips, store);
                }
            });
        }
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// A panel's steps from `step` on.
    fn panel(&self, panel: usize, step: usize) -> &[F::Weight] {
        let panel_len = layout::steps::<F>(self.k) * F::STEP_LEN;
        &self.weights[panel * panel_len + step * F::STEP_LEN..(panel + 1) * panel_len]
    }

    /// The scales of a panel's groups.
    fn scales(&self, panel: usize) -> Scales<'_> {
        let Scales { words, ends } = self.scales;
        let per_panel = words.len() / self.panels();
        Scales { words: &words[panel * per_panel..(panel + 1) * per_panel], ends }
    }

    /// What [`Tile::scales`] is from a step and a column of a panel on.
    fn tile_scales(&self, panel: usize, step: usize, column: usize) -> Scales<'_> {
        if !F::SCALES {
            return Scales::NONE;
        }
        self.scales(panel).from(step / F::GROUP, column)
    }

    /// Writes some steps of a panel as f32; see [`Format::widen`].
    fn widen(
        self,
        panel: usize,
        step: usize,
        count: usize,
        slab: (usize, usize),
        wide: &mut [f32],
    ) {
        let packed = &self.panel(panel, step)[..count * F::STEP_LEN];
        let scales = self.scales(panel);
        self.s.run(Widen::<F> { packed, scales, first: step, slab, wide });
    }

    /// Few rows: each panel is read once, from memory to registers. Rows that do not fit in
    /// registers beside each other find it in L1.
    fn direct(self, strips: Strips<'_, F>, store: Store<'_>) {
        // What is read only once need not stay in L1.
        let once = strips.number() == 1 && tile::widest::<S, F>(strips.count) * S::LANES == PANEL;
        let depth = if once && !F::ALWAYS_WIDEN { strips.depth } else { layout::grain::<F>() };
        let wide_len = if F::ALWAYS_WIDEN { depth * PANEL } else { 0 };
        // Neighbors lie behind each other and go on to be read without a pause.
        let run = (self.panels() / (8 * self.pool.threads())).clamp(1, 8);
        self.pool.run(self.panels().div_ceil(run), &|task| {
            with_scratch(DIRECT_SUMS + wide_len, |scratch| {
                for panel in task * run..self.panels().min((task + 1) * run) {
                    self.direct_panel(strips, panel, depth, scratch, store);
                }
            });
        });
    }

    /// The output of one panel, `depth` steps of it at a time.
    fn direct_panel(
        self,
        strips: Strips<'_, F>,
        panel: usize,
        depth: usize,
        scratch: &mut [f32],
        store: Store<'_>,
    ) {
        // Bytes between a load and what is asked for: the hardware's prefetcher stops at pages. Products of one
        // row run ahead by themselves; those of more have less of it in flight. Zen 4, 2026-11: four rows in
        // bf16 take 0.76 ms and not 1.07 with four times the distance, 0.79 with eight times.
        let ahead = if strips.count == 1 { 2048 } else { 8192 };
        let steps = layout::steps::<F>(self.k);
        let (sums, wide) = scratch.split_at_mut(DIRECT_SUMS);
        for step in (0..steps).step_by(depth) {
            let count = depth.min(steps - step);
            if F::ALWAYS_WIDEN {
                self.widen(panel, step, count, (PANEL, 0), wide);
            }
            for strip in 0..strips.number() {
                let rows = strips.rows(strip);
                let vectors = tile::widest::<S, F>(rows);
                for column in (0..PANEL).step_by(vectors * S::LANES) {
                    let sums = &mut sums[strip * ROWS * PANEL + column..];
                    let fresh = step == 0;
                    if F::ALWAYS_WIDEN {
                        let tile = Tile::<Single<f32>> {
                            rows: bytemuck::cast_slice(strips.at(strip, step)),
                            row_stride: strips.stride(),
                            columns: &wide[column..],
                            stride: PANEL,
                            scales: Scales::NONE,
                            steps: count,
                            sums,
                            sums_stride: PANEL,
                            fresh,
                            prefetch: 0,
                        };
                        tile::run(self.s, rows, vectors, tile);
                        continue;
                    }
                    let tile = Tile::<F> {
                        rows: strips.at(strip, step),
                        row_stride: strips.stride(),
                        columns: &self.panel(panel, step)[column * F::STEP_LEN / PANEL..],
                        stride: PANEL,
                        scales: self.tile_scales(panel, step, column),
                        steps: count,
                        sums,
                        sums_stride: PANEL,
                        fresh,
                        prefetch: if strip == 0 { ahead } else { 0 },
                    };
                    tile::run(self.s, rows, vectors, tile);
                }
            }
        }
        let column = panel * PANEL;
        store(Piece {
            sums,
            stride: PANEL,
            rows: (strips.first, strips.count),
            columns: (column, PANEL.min(self.n - column)),
        });
    }

    /// Many rows.
    fn blocked(self, strips: Strips<'_, F>, store: Store<'_>) {
        let widen = if Self::AS_PACKED { 0 } else { 8 };
        let sizes = (self.panels(), strips.number());
        let (task_panels, task_strips) = task_size(self.pool.threads(), sizes, widen);
        let across = strips.number().div_ceil(task_strips);
        let down = self.panels().div_ceil(task_panels);
        // Neighbors in this order share panels, which the first of them brings into L3.
        self.pool.run(across * down, &|task| {
            let panel = task / across * task_panels;
            let strip = task % across * task_strips;
            let panels = panel..self.panels().min(panel + task_panels);
            self.rectangle(strips, panels, strip..strips.number().min(strip + task_strips), store);
        });
    }

    /// The output of some panels for some strips.
    fn rectangle(
        self,
        all: Strips<'_, F>,
        panels: Range<usize>,
        strips: Range<usize>,
        store: Store<'_>,
    ) {
        let steps = layout::steps::<F>(self.k);
        let slabs = panels.len() * PANEL / Self::WIDTH;
        let tile_len = ROWS * Self::WIDTH;
        let depth = all.depth;
        let wide_len = if Self::AS_PACKED { 0 } else { panels.len() * PANEL * depth };
        with_scratch(wide_len + slabs * strips.len() * tile_len, |scratch| {
            let (wide, sums) = scratch.split_at_mut(wide_len);
            for step in (0..steps).step_by(depth) {
                let count = depth.min(steps - step);
                if !Self::AS_PACKED {
                    for (panel, wide) in panels.clone().zip(wide.chunks_exact_mut(PANEL * depth)) {
                        let slab = (Self::WIDTH, depth * Self::WIDTH);
                        self.widen(panel, step, count, slab, wide);
                    }
                }
                for some in strips.clone().step_by(STRIPS_IN_L2) {
                    let some = some..strips.end.min(some + STRIPS_IN_L2);
                    for slab in 0..slabs {
                        let column = panels.start * PANEL + slab * Self::WIDTH;
                        if column >= self.n {
                            break;
                        }
                        for strip in some.clone() {
                            let at = slab * strips.len() + strip - strips.start;
                            let sums = &mut sums[at * tile_len..(at + 1) * tile_len];
                            let rows = all.rows(strip);
                            let fresh = step == 0;
                            if Self::AS_PACKED {
                                let columns = self.panel(column / PANEL, step);
                                let tile = Tile::<F> {
                                    rows: all.at(strip, step),
                                    row_stride: all.stride(),
                                    columns: &columns[column % PANEL * F::STEP_LEN / PANEL..],
                                    stride: PANEL,
                                    scales: self.tile_scales(column / PANEL, step, column % PANEL),
                                    steps: count,
                                    sums,
                                    sums_stride: Self::WIDTH,
                                    fresh,
                                    prefetch: 0,
                                };
                                tile::run(self.s, rows, Self::WIDTH / S::LANES, tile);
                            } else {
                                let tile = Tile::<Single<f32>> {
                                    rows: bytemuck::cast_slice(all.at(strip, step)),
                                    row_stride: all.stride(),
                                    columns: &wide[slab * Self::WIDTH * depth..],
                                    stride: Self::WIDTH,
                                    scales: Scales::NONE,
                                    steps: count,
                                    sums,
                                    sums_stride: Self::WIDTH,
                                    fresh,
                                    prefetch: 0,
                                };
                                tile::run(self.s, rows, Self::WIDTH / S::LANES, tile);
                            }
                            if step + count == steps {
                                store(Piece {
                                    sums,
                                    stride: Self::WIDTH,
                                    rows: (all.first + strip * ROWS, rows),
                                    columns: (column, Self::WIDTH.min(self.n - column)),
                                });
                            }
                        }
                    }
                }
            }
        });
    }
}

/// Packed activations.
struct Strips<'a, F: Format> {
    packed: &'a [F::Activation],
    strip_len: usize,
    /// Steps of a block.
    depth: usize,
    /// The first row's place in the output.
    first: usize,
    /// Number of rows.
    count: usize,
}

impl<F: Format> Clone for Strips<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Format> Copy for Strips<'_, F> {}

impl<'a, F: Format> Strips<'a, F> {
    fn number(&self) -> usize {
        self.count.div_ceil(ROWS)
    }

    /// Steps from one row to the next.
    fn stride(&self) -> usize {
        layout::stride::<F>(self.depth)
    }

    /// Rows of a strip: the last one may be lower.
    fn rows(&self, strip: usize) -> usize {
        ROWS.min(self.count - strip * ROWS)
    }

    /// A strip's block of steps, from `step` on.
    fn at(&self, strip: usize, step: usize) -> &'a [F::Activation] {
        let block = ROWS * self.stride() * F::PER_STEP;
        let start = strip * self.strip_len + step / self.depth * block;
        let within = layout::stride::<F>(step % self.depth) * F::PER_STEP;
        &self.packed[start + within..start + block]
    }
}

/// How many panels and strips a task takes, so that `threads` threads finish `(panels, strips)`
/// soonest. A task costs its area, and `widen` rows more for preparing its panels.
fn task_size(threads: usize, (panels, strips): (usize, usize), widen: usize) -> (usize, usize) {
    let cost = |&(p, s): &(usize, usize)| {
        let rounds = (panels.div_ceil(p) * strips.div_ceil(s)).div_ceil(threads);
        // A lone panel re-reads its rows from L2 for little work: a strip more for each eight.
        rounds * p * (s * ROWS * 8 + widen * 8 + s * ROWS / p / 2)
    };
    let most = (MAX_TASK.0.min(panels), MAX_TASK.1.min(strips));
    let parts = strips.div_ceil(most.1)..=strips.min(8 * threads).max(strips.div_ceil(most.1));
    let sizes = parts.flat_map(|parts| (1..=most.0).map(move |p| (p, strips.div_ceil(parts))));
    sizes.min_by_key(cost).expect("one part of one panel is a size")
}

/// See [`Format::widen`].
struct Widen<'a, F: Format> {
    packed: &'a [F::Weight],
    scales: Scales<'a>,
    first: usize,
    slab: (usize, usize),
    wide: &'a mut [f32],
}

impl<F: Format> Op for Widen<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        F::widen(s, self.packed, self.scales, self.first, self.slab, self.wide);
    }
}
