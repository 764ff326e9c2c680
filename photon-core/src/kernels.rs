//! The operations a model is made of: one struct each, whose doc is the formula.
//!
//! Conventions: activations may be f32, f16 or bf16, all arithmetic is f32, and results are rounded
//! once when stored. Vectors (biases, norm weights, tables) are f32. Outputs never overlap inputs
//! unless the field says "read and written". An index that is negative or out of range skips its
//! row, whatever an index tensor holds.
use crate::{Cx, Device, Tensor, Weight, reference};

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// GELU, tanh form: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// GELU, exact: `0.5 x (1 + erf(x / sqrt(2)))`.
    GeluErf,
}

/// `out[i, j] = activation(sum_k x[i, k] w[j, k] + bias[j])`, plus the old `out[i, j]` if
/// `accumulate`.
#[derive(Debug)]
pub struct Linear<'a, D: Device> {
    /// `[rows, n]`, any float; read and written if `accumulate`. May be a column view.
    pub out: &'a mut Tensor<D>,
    /// `[rows, k]`, any float. May be a column view.
    pub x: &'a Tensor<D>,
    /// `[n, k]`.
    pub w: &'a Weight<D>,
    /// `[n]`, f32.
    pub bias: Option<&'a Tensor<D>>,
    /// Applied to each sum.
    pub activation: Activation,
    /// Whether to add to what `out` holds: the residual connection.
    pub accumulate: bool,
}

/// `out = activation(x)`, element by element.
#[derive(Debug)]
pub struct Activate<'a, D: Device> {
    /// `[rows, dim]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[rows, dim]`, any float. May be a column view.
    pub x: &'a Tensor<D>,
    /// The function.
    pub activation: Activation,
}

/// A linear layer whose rows differ in their matrix: with `r = rows(out) / rows(x)`,
/// `out[i, j] = sum_k x[i / r, k] w[groups[i], j, k]`, plus the old `out[i, j]` if `accumulate`.
///
/// Experts are one use: a token's row goes through the matrices it was routed to. Adapters are
/// another: each row adds the product with its own adapter's matrix, or, its group being -1, nothing.
#[derive(Debug)]
pub struct GroupedLinear<'a, D: Device> {
    /// `[rows * r, n]`, any float; read and written if `accumulate`. Rows with a bad group stay.
    pub out: &'a mut Tensor<D>,
    /// `[rows, k]`, any float. May be a column view.
    pub x: &'a Tensor<D>,
    /// `[groups, n, k]`.
    pub w: &'a Weight<D>,
    /// `[rows * r]`, i32: the matrix of each row of `out`.
    pub groups: &'a Tensor<D>,
    /// Whether to add to what `out` holds.
    pub accumulate: bool,
}

/// Chooses experts: `experts[i]` are the places of the `top` largest of `logits[i]`, largest first, of
/// equals the lower place first (a NaN counts as less than any number);
/// `weights[i] = softmax(logits[i, experts[i]])`.
#[derive(Debug)]
pub struct Route<'a, D: Device> {
    /// `[rows, top]`, i32; `top` is at most the number of experts.
    pub experts: &'a mut Tensor<D>,
    /// `[rows, top]`, f32.
    pub weights: &'a mut Tensor<D>,
    /// `[rows, num_experts]`, any float.
    pub logits: &'a Tensor<D>,
}

/// Joins two levels of groups to one: `out[i, j] = outer[i] count + inner[i, j]`, or -1 where `outer[i]`
/// is negative or `inner[i, j]` is not in `0 .. count`.
///
/// The experts of adapters are such: adapter `outer` has `count` matrices.
#[derive(Debug)]
pub struct Nest<'a, D: Device> {
    /// `[rows, top]`, i32.
    pub out: &'a mut Tensor<D>,
    /// `[rows]`, i32.
    pub outer: &'a Tensor<D>,
    /// `[rows, top]`, i32.
    pub inner: &'a Tensor<D>,
    /// Inner groups of an outer one.
    pub count: usize,
}

/// The gate of an expert: `out = gelu(h) (g + 1)`, where `h` and `g` are the halves of a row of `x` and
/// gelu is [`Activation::GeluErf`].
#[derive(Debug)]
pub struct GatedGelu<'a, D: Device> {
    /// `[rows, n]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[rows, 2 * n]`, any float.
    pub x: &'a Tensor<D>,
}

/// Joins what a token's experts gave: `out[i] += sum_j weights[i, j] x[i top + j]`, summed before it is
/// added.
#[derive(Debug)]
pub struct WeightedSum<'a, D: Device> {
    /// `[rows, dim]`, any float; read and written.
    pub out: &'a mut Tensor<D>,
    /// `[rows * top, dim]`, any float.
    pub x: &'a Tensor<D>,
    /// `[rows, top]`, f32.
    pub weights: &'a Tensor<D>,
}

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * w + b`, row by row, variance without Bessel's
/// correction.
#[derive(Debug)]
pub struct LayerNorm<'a, D: Device> {
    /// `[rows, dim]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[rows, dim]`, any float.
    pub x: &'a Tensor<D>,
    /// `[dim]`, f32.
    pub w: &'a Tensor<D>,
    /// `[dim]`, f32.
    pub b: &'a Tensor<D>,
    /// Added to the variance.
    pub eps: f32,
}

/// Cuts crops into patches and normalizes: with `g = size / patch`,
/// `out[crop g^2 + py g + px, c patch^2 + y patch + x] =
/// (crops[crop, py patch + y, px patch + x, c] / 255 - 0.5) / 0.5`.
///
/// Source: Moondream 2, `vision.py`: channels first within a patch.
#[derive(Debug)]
pub struct Patchify<'a, D: Device> {
    /// `[num_crops * g^2, 3 * patch^2]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[num_crops, size, size, 3]`, u8, contiguous.
    pub crops: &'a Tensor<D>,
    /// Side of a patch in pixels; divides `size`.
    pub patch: usize,
}

/// `out[i] = x[i mod rows(x)]`: a table of rows repeated.
#[derive(Debug)]
pub struct Tile<'a, D: Device> {
    /// `[rows, dim]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[period, dim]`, any float.
    pub x: &'a Tensor<D>,
}

/// Patch embedding: [`Patchify`], a linear layer, and the position table added to every crop.
/// Fused; spelled out in [`reference::patch_embed`].
#[derive(Debug)]
pub struct PatchEmbed<'a, D: Device> {
    /// `[num_crops * g^2, dim]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[num_crops, size, size, 3]`, u8.
    pub crops: &'a Tensor<D>,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// `[dim, 3 * patch^2]`.
    pub w: &'a Weight<D>,
    /// `[dim]`, f32.
    pub bias: &'a Tensor<D>,
    /// `[g^2, dim]`, f32.
    pub positions: &'a Tensor<D>,
    /// `[num_crops * g^2, 3 * patch^2]`, any float: void afterwards.
    pub scratch: &'a mut Tensor<D>,
}

/// Attention within separate sequences of equal length, every position seeing every other:
/// `out[s, t, h] = softmax_u(scale q[s, t, h] . k[s, u, h]) v[s, u, h]`.
#[derive(Debug)]
pub struct Attention<'a, D: Device> {
    /// `[num_seqs * seq_len, heads * head_dim]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[num_seqs * seq_len, 3 * heads * head_dim]`: q, k and v side by side, same type as `out`.
    pub qkv: &'a Tensor<D>,
    /// Positions in each sequence.
    pub seq_len: usize,
    /// Attention heads.
    pub heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
}

/// Rotates q and k by position and stores k and v in the paged cache.
///
/// For `j < r/2`, `r = rotary_dims`, with `(c, s) = table[pos, j], table[pos, r/2 + j]`:
/// `x'[j] = x[j] c - x[j + r/2] s`, `x'[j + r/2] = x[j] s + x[j + r/2] c`; dims from `r` up stay.
/// q is rotated in place; k goes rotated, v unchanged, to row `slots[t]` of the caches. With [`Tau`], q and
/// v are scaled first; nothing is rounded before it is stored.
#[derive(Debug)]
pub struct RopeStore<'a, D: Device> {
    /// `[tokens, (heads + 2 kv_heads) * head_dim]`: q, k, v; q is read and written, k and v are void
    /// afterwards.
    pub qkv: &'a mut Tensor<D>,
    /// `[num_slots, kv::row_len]`, any float or 8-bit: see [`kv`](crate::kv).
    pub k_cache: &'a mut Tensor<D>,
    /// Like `k_cache`, same type.
    pub v_cache: &'a mut Tensor<D>,
    /// `[tokens]`, i32. A position outside the table skips the token.
    pub positions: &'a Tensor<D>,
    /// `[tokens]`, i32. A slot outside the caches skips the store.
    pub slots: &'a Tensor<D>,
    /// `[max_context, rotary_dims]`, f32: cosines, then sines.
    pub table: &'a Tensor<D>,
    /// What scales q and v, if anything does.
    pub tau: Option<Tau<'a, D>>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

/// What scales q and v of every head, by content and position: at position `p`, with
/// `f(s) = tanh(s) + 1 / (1 + e^(-a)) + 0.5` and `a = alpha[h] ln(p + 1)`,
/// `q[h] *= f(scores[t, h])`, `v[h] *= f(scores[t, heads + h])`; k stays. There are as many key heads as
/// query heads.
///
/// Source: Moondream 3, `text.py`, "tau" attention.
#[derive(Debug)]
pub struct Tau<'a, D: Device> {
    /// `[tokens, 2 * heads]`, any float: for q, then for v.
    pub scores: &'a Tensor<D>,
    /// `[heads]`, f32.
    pub alpha: &'a Tensor<D>,
}

/// Attention of ragged queries over the paged cache, read through block tables.
///
/// Row `r` owns tokens `row_starts[r] .. row_starts[r + 1]`. Token `t` sees the first `visible[t]`
/// positions of its row: those up to its own where attention is causal, those up to the end of its
/// picture where it goes both ways. Position `u` lives in cache row
/// `block_tables[r, u / block_size] * block_size + u % block_size`.
/// Query head `h` uses key head `h / (heads / kv_heads)`.
#[derive(Debug)]
pub struct PagedAttention<'a, D: Device> {
    /// `[tokens, heads * head_dim]`, any float. Tokens that see no position stay as they are.
    pub out: &'a mut Tensor<D>,
    /// `[tokens, heads * head_dim]`, rotated; usually a column view of qkv. Same type as `out`.
    pub q: &'a Tensor<D>,
    /// `[num_slots, kv::row_len]`, any float or 8-bit: see [`kv`](crate::kv).
    pub k_cache: &'a Tensor<D>,
    /// Like `k_cache`, same type.
    pub v_cache: &'a Tensor<D>,
    /// `[rows, max_blocks]`, i32; positions in a block that is negative or out of range, or past the
    /// table, are not seen.
    pub block_tables: &'a Tensor<D>,
    /// `[rows + 1]`, i32, not decreasing, from 0 to `tokens`.
    pub row_starts: &'a Tensor<D>,
    /// `[tokens]`, i32: how many first positions each token sees. In any order, though in what models
    /// ask for it does not decrease within a row.
    pub visible: &'a Tensor<D>,
    /// Slots per block.
    pub block_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
}

/// Joins the crops of one picture: `out[i] = cat(global[i], pooled[i])`.
///
/// `x` holds the global crop, then the local ones row by row, each `[grid, grid]` patches. Local
/// crops are stitched to a map of `(grid - 2 margin) tiles + 2 margin` patches a side: a tile gives
/// its patches `[0 if first else margin .. grid if last else grid - margin]` along each axis at
/// offset `tile (grid - 2 margin)`. The map is averaged down to `[grid, grid]`: cell `i` of `n`
/// patches covers `floor(i n / grid) .. ceil((i + 1) n / grid)`. If `x` has one crop and the tiling
/// is 1 x 1, the local crop is that crop too.
///
/// Source: Moondream 2, `image_crops.py` and `vision.py`.
#[derive(Debug)]
pub struct StitchPool<'a, D: Device> {
    /// `[grid^2, 2 * dim]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[num_crops * grid^2, dim]`, any float; `num_crops` is `1 + tiles.0 * tiles.1`, or 1.
    pub x: &'a Tensor<D>,
    /// Patches per side of a crop.
    pub grid: usize,
    /// Patches at each inner edge that overlap the neighbor and are dropped.
    pub margin: usize,
    /// Local crops: rows, columns.
    pub tiles: (usize, usize),
}

/// `out[i] = x[indices[i]]`.
#[derive(Debug)]
pub struct Gather<'a, D: Device> {
    /// `[count, dim]`, any float. Rows with a bad index stay as they are.
    pub out: &'a mut Tensor<D>,
    /// `[rows, dim]`, any float.
    pub x: &'a Tensor<D>,
    /// `[count]`, i32.
    pub indices: &'a Tensor<D>,
}

/// `out[indices[i]] = x[i]`. Indices that are in range must differ from each other.
#[derive(Debug)]
pub struct Scatter<'a, D: Device> {
    /// `[rows, dim]`, any float; rows not named stay.
    pub out: &'a mut Tensor<D>,
    /// `[count, dim]`, any float.
    pub x: &'a Tensor<D>,
    /// `[count]`, i32.
    pub indices: &'a Tensor<D>,
}

/// Fourier features: with `a[i, j] = 2 pi sum_d values[i, d] w[d, j]`,
/// `out[i] = cat(cos(a[i]), sin(a[i]))`.
#[derive(Debug)]
pub struct Fourier<'a, D: Device> {
    /// `[rows, 2 * features]`, any float.
    pub out: &'a mut Tensor<D>,
    /// `[rows, dims]`, f32.
    pub values: &'a Tensor<D>,
    /// `[dims, features]`, f32.
    pub w: &'a Tensor<D>,
}

/// Draws one id per row by the definition in [`crate::sampler`].
#[derive(Debug)]
pub struct Sample<'a, D: Device> {
    /// `[rows]`, i32: the id, or [`crate::sampler::NO_TOKEN`] if the row has none (all banned, or NaN).
    pub ids: &'a mut Tensor<D>,
    /// `[rows]`, f32: natural logarithm of the id's probability before any truncation.
    pub logprobs: &'a mut Tensor<D>,
    /// `[rows, vocab]`, any float.
    pub logits: &'a Tensor<D>,
    /// `[rows, size_of::<SampleParams>()]`, u8: [`crate::SampleParams`] records.
    pub params: &'a Tensor<D>,
    /// What else restricts the ids of some rows.
    pub masks: Option<Masks<'a, D>>,
}

/// Sets of ids, and which row draws from which.
#[derive(Debug)]
pub struct Masks<'a, D: Device> {
    /// `[masks, ceil(vocab / 32)]`, i32: id `i` is in a set if bit `i % 32` of its word `i / 32` is.
    pub bits: &'a Tensor<D>,
    /// `[rows]`, i32: the set a row draws from. A row with a bad one draws from all ids.
    pub rows: &'a Tensor<D>,
}

/// `out = x`, element by element: bit for bit if the types agree, else converted.
#[derive(Debug)]
pub struct Copy<'a, D: Device> {
    /// `[rows, dim]`, any type. May be a column view.
    pub out: &'a mut Tensor<D>,
    /// `[rows, dim]`, of the same type, or floats both. May be a column view.
    pub x: &'a Tensor<D>,
}

/// What a backend implements. Called by [`Cx`], which has already checked shapes and types.
pub trait Kernels: Device {
    /// See [`Linear`].
    fn linear(cx: &mut Cx<'_, Self>, op: Linear<'_, Self>);
    /// See [`Activate`].
    fn activate(cx: &mut Cx<'_, Self>, op: Activate<'_, Self>);
    /// See [`GroupedLinear`].
    fn grouped_linear(cx: &mut Cx<'_, Self>, op: GroupedLinear<'_, Self>);
    /// See [`Route`].
    fn route(cx: &mut Cx<'_, Self>, op: Route<'_, Self>);
    /// See [`Nest`].
    fn nest(cx: &mut Cx<'_, Self>, op: Nest<'_, Self>);
    /// See [`GatedGelu`].
    fn gated_gelu(cx: &mut Cx<'_, Self>, op: GatedGelu<'_, Self>);
    /// See [`WeightedSum`].
    fn weighted_sum(cx: &mut Cx<'_, Self>, op: WeightedSum<'_, Self>);
    /// See [`LayerNorm`].
    fn layer_norm(cx: &mut Cx<'_, Self>, op: LayerNorm<'_, Self>);
    /// See [`Patchify`].
    fn patchify(cx: &mut Cx<'_, Self>, op: Patchify<'_, Self>);
    /// See [`Tile`].
    fn tile(cx: &mut Cx<'_, Self>, op: Tile<'_, Self>);
    /// See [`PatchEmbed`]. Override to fuse.
    fn patch_embed(cx: &mut Cx<'_, Self>, op: PatchEmbed<'_, Self>) {
        reference::patch_embed(cx, op);
    }
    /// See [`Attention`].
    fn attention(cx: &mut Cx<'_, Self>, op: Attention<'_, Self>);
    /// See [`RopeStore`].
    fn rope_store(cx: &mut Cx<'_, Self>, op: RopeStore<'_, Self>);
    /// See [`PagedAttention`].
    fn paged_attention(cx: &mut Cx<'_, Self>, op: PagedAttention<'_, Self>);
    /// See [`StitchPool`].
    fn stitch_pool(cx: &mut Cx<'_, Self>, op: StitchPool<'_, Self>);
    /// See [`Gather`].
    fn gather(cx: &mut Cx<'_, Self>, op: Gather<'_, Self>);
    /// See [`Scatter`].
    fn scatter(cx: &mut Cx<'_, Self>, op: Scatter<'_, Self>);
    /// See [`Fourier`].
    fn fourier(cx: &mut Cx<'_, Self>, op: Fourier<'_, Self>);
    /// See [`Sample`].
    fn sample(cx: &mut Cx<'_, Self>, op: Sample<'_, Self>);
    /// See [`struct@Copy`].
    fn copy(cx: &mut Cx<'_, Self>, op: Copy<'_, Self>);
}
