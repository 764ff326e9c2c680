// Linear layers of few rows, on tensor cores: bound by the bytes of the weights.
//
// A block has MT x 16 features and up to 8 NT rows; each of its warps streams one part of k from memory to the registers of
// the multiplication, eight vectors of 16 bytes per lane ahead of what it multiplies, which is 32 to 64 KiB under way per
// SM. Activations come from L1 and L2, 16 bytes per lane for every 32 elements of k. At the end the warps hand their sums
// over through shared memory and the block adds the parts in order: see linear.cuh. Where the device can, a kernel starts
// while the one before it runs, and has its first weights under way when that is done.
//
// Bytes: the matrix once per row tile, activations once per block.  FLOPs: 2 n k rows, padded to multiples of 8 rows.
// grid = (features / (16 MT), rows / (8 NT)), block = 32 parts, shared = SKINNY_SHARED.
#pragma once
#include "linear.cuh"

// Instead of where a row of activations begins, in elements.
constexpr uint32_t NO_ROW = 0xffffffff;

// The weights of a few blocks of k: some eight vectors per lane, scales included.
template <class F, int MT> struct Chunk {
  static constexpr int DEPTH = F::GROUP_SCALES ? 4 / MT : 8 / (F::WORDS * MT);
  uint4 codes[DEPTH][MT][VECTORS<F>];
  // All four lanes of two features need the scales of each 32 elements of k. Each keeps those of one of four such runs.
  float4 scales[F::GROUP_SCALES ? DEPTH / 2 : 1][MT];

  DEVICE void load(const LinearArgs& a, const uint8_t* matrix, uint32_t tile, uint32_t begin, uint32_t end) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      const uint32_t block = begin + d;
      if (block >= end) break;
#pragma unroll
      for (int m = 0; m < MT; m++) {
        // Past the last feature the last ones are read again, and dropped.
        const uint32_t at = min(tile + m, (a.n - 1) / BLOCK_N);
#pragma unroll
        for (int v = 0; v < VECTORS<F>; v++) {
          codes[d][m][v] = ld_stream_16(vector_of<F>(matrix, a.k_blocks, at, block, lane, v));
        }
        if (F::GROUP_SCALES && d % 2 == 0) {
          const uint32_t half = min(2 * block + lane % 4, 2 * a.k_blocks - 1);
          scales[d / 2][m] = *group_scales(a, matrix, at, half, lane / 4);
        }
      }
    }
  }

  // Those of half `half` of block `d`.
  DEVICE float4 factors(int d, int m, int half) const {
    if (!F::GROUP_SCALES) return float4{};
    const int owner = (threadIdx.x % 32 & ~3) + d % 2 * 2 + half;
    const float4 s = scales[d / 2][m];
    return make_float4(__shfl_sync(0xffffffff, s.x, owner), __shfl_sync(0xffffffff, s.y, owner),
                       __shfl_sync(0xffffffff, s.z, owner), __shfl_sync(0xffffffff, s.w, owner));
  }
};

// The words of half a block among the vectors a lane has of it.
template <class F> struct Half {
  uint32_t words[2 * F::WORDS];

  DEVICE Half(const uint4 (&codes)[VECTORS<F>], int half) {
    if constexpr (F::WORDS == 1) {
      words[0] = half ? codes[0].z : codes[0].x;
      words[1] = half ? codes[0].w : codes[0].y;
    } else {
#pragma unroll
      for (int i = 0; i < F::WORDS / 2; i++) {
        const uint4 v = codes[F::WORDS / 2 * half + i];
        words[4 * i] = v.x;
        words[4 * i + 1] = v.y;
        words[4 * i + 2] = v.z;
        words[4 * i + 3] = v.w;
      }
    }
  }
};

// The sums of 32 activations of each of 8 rows, where the lanes need them: a multiplication with ones. Of int4 only.
template <class T, class F> DEVICE void sum_activations(float (&all)[4], uint4 x) {
  if constexpr (F::GROUP_SCALES) {
    const uint32_t ones[4] = {ONES<T>, ONES<T>, ONES<T>, ONES<T>};
    all[0] = all[1] = all[2] = all[3] = 0.0f;
    mma<T>(all, ones, x.x, x.y);
    mma<T>(all, ones, x.z, x.w);
  }
}

// Adds the products of 32 elements of k: of 16 features, whose two fragments and scales these are, with 8 rows, of which a
// lane has the elements `x` of one.
template <class T, class F>
DEVICE void multiply(float (&sums)[4], const uint32_t (&fragments)[2][4], float4 scales, const float (&all)[4], uint4 x) {
  if constexpr (F::GROUP_SCALES) {
    float part[4] = {};
    mma<T>(part, fragments[0], x.x, x.y);
    mma<T>(part, fragments[1], x.z, x.w);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float scale = i < 2 ? scales.x : scales.z, offset = i < 2 ? scales.y : scales.w;
      sums[i] = fmaf(scale, part[i], fmaf(offset, all[i], sums[i]));
    }
  } else {
    mma<T>(sums, fragments[0], x.x, x.y);
    mma<T>(sums, fragments[1], x.z, x.w);
  }
}

// Block `d` of a chunk. `whole`: every row's vectors can be read as such.
template <class T, class F, int MT, int NT>
DEVICE void multiply_block(const LinearArgs& a, float (&sums)[NT][MT][4], const Chunk<F, MT>& chunk, int d,
                           const uint32_t (&x)[NT], uint32_t block, bool whole) {
  const uint32_t t = threadIdx.x % 4;
  // Unrolled, int4 would take more registers than there are.
#pragma unroll(F::GROUP_SCALES ? 1 : 2)
  for (int half = 0; half < 2; half++) {
    const uint32_t k = block * BLOCK_K + 32 * half + 8 * t;
    uint32_t fragments[MT][2][4];
    float4 factors[MT];
#pragma unroll
    for (int m = 0; m < MT; m++) {
      F::template fragments<T>(Half<F>(chunk.codes[d][m], half).words, fragments[m]);
      factors[m] = chunk.factors(d, m, half);
    }
#pragma unroll
    for (int i = 0; i < NT; i++) {
      uint4 bits = make_uint4(0, 0, 0, 0);
      if (x[i] != NO_ROW) {
        const T* at = (const T*)a.x + x[i] + k;
        bits = whole ? *(const uint4*)at : load8_bits(at, (int)a.k - (int)k, a.x_align);
      }
      float all[4];
      sum_activations<T, F>(all, bits);
#pragma unroll
      for (int m = 0; m < MT; m++) multiply<T, F>(sums[i][m], fragments[m], factors[m], all, bits);
    }
  }
}

// Rows `first .. end` of the output, at most 8 NT, or those of `list` with these places in it. Ends with a barrier if there
// is a list.
template <class T, class F, int MT, int NT>
DEVICE void skinny_rows(const LinearArgs& a, const uint8_t* matrix, const uint32_t* list, uint32_t first, uint32_t end,
                        float* shared) {
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const uint32_t tile = blockIdx.x * MT;
  uint32_t x[NT];
#pragma unroll
  for (int i = 0; i < NT; i++) {
    const uint32_t place = first + 8 * i + lane / 4;
    const uint32_t row = place < end && list ? list[place] / a.per_row : place;
    x[i] = place < end ? row * a.x_stride : NO_ROW;
  }

  float sums[NT][MT][4] = {};
  const uint32_t begin = part * a.part_blocks, stop = min(begin + a.part_blocks, a.k_blocks);
  Chunk<F, MT> next;
  next.load(a, matrix, tile, begin, stop);
  // Weights of linear layers are never written; what else is read may still be on its way. For a list it is waited before.
  if (!list) grid_wait();
  for (uint32_t block = begin; block < stop; block += next.DEPTH) {
    const Chunk<F, MT> now = next;
    next.load(a, matrix, tile, block + next.DEPTH, stop);
#pragma unroll
    for (int d = 0; d < next.DEPTH; d++) {
      if (block + d >= stop) break;
      const bool whole = a.x_align >= 16 && (block + d + 1) * BLOCK_K <= a.k;
      multiply_block<T, F, MT, NT>(a, sums, now, d, x, block + d, whole);
    }
  }

  // Two buffers by turns: who writes one again has passed the barrier after which the other was read.
  const uint32_t size = a.parts * MT * 128;
#pragma unroll
  for (int i = 0; i < NT; i++) {
    float* buffer = shared + i % 2 * size;
#pragma unroll
    for (int m = 0; m < MT; m++) {
      *(float4*)(buffer + (part * MT + m) * 128 + lane * 4) =
          make_float4(sums[i][m][0], sums[i][m][1], sums[i][m][2], sums[i][m][3]);
    }
    __syncthreads();
    for (uint32_t j = threadIdx.x; j < MT * 128; j += blockDim.x) {
      const uint32_t owner = j % 128 / 4, e = j % 4;
      const uint32_t feature = (tile + j / 128) * BLOCK_N + owner / 4 + 8 * (e / 2);
      const uint32_t place = first + 8 * i + owner % 4 * 2 + e % 2;
      if (feature >= a.n || place >= end) continue;
      float sum = 0.0f;
      for (uint32_t p = 0; p < a.parts; p++) sum += buffer[p * MT * 128 + j];
      put<F::ROW_SCALES>(a, matrix, list ? list[place] : place, feature, sum);
    }
  }
  if (list) __syncthreads();
}

template <class T, class F, int MT, int NT> DEVICE void skinny(const LinearArgs& a) {
  DYNAMIC_SHARED(float, shared);
  grid_launch_next();
  const uint32_t first = blockIdx.y * 8 * NT;
  skinny_rows<T, F, MT, NT>(a, a.w, nullptr, first, min(first + 8 * NT, a.rows), shared);
}

// Most rows of `grouped_skinny`.
constexpr uint32_t SKINNY_GROUPED_ROWS = 128;

// Few rows that differ in their matrix. Block (i, j) finds the j-th distinct matrix among those of the rows and the rows
// that go through it, and reads its part of that matrix once for each 8 NT of them: as long as no more share one, a matrix is
// read once however many rows need it.  grid = (features / 16, min(rows, count)).
template <class T, class F, int NT> DEVICE void skinny_grouped(const LinearArgs& a) {
  DYNAMIC_SHARED(float, shared);
  __shared__ int32_t groups[SKINNY_GROUPED_ROWS];
  __shared__ uint32_t is_first[SKINNY_GROUPED_ROWS];
  __shared__ uint32_t list[SKINNY_GROUPED_ROWS];
  enter();
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t i = threadIdx.x; i < SKINNY_GROUPED_ROWS; i += blockDim.x) {
    const int32_t group = i < a.rows ? a.groups[i] : -1;
    groups[i] = group < (int32_t)a.count ? group : -1;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < SKINNY_GROUPED_ROWS; i += blockDim.x) {
    bool first = groups[i] >= 0;
    for (uint32_t j = 0; j < i && first; j++) first = groups[j] != groups[i];
    is_first[i] = first;
  }
  __syncthreads();
  // Every warp finds this for itself.
  int32_t group = -1;
  uint32_t before = 0;
  for (uint32_t i = lane; i < SKINNY_GROUPED_ROWS; i += 32) {
    const uint32_t firsts = __ballot_sync(0xffffffff, is_first[i]);
    const uint32_t place = before + __popc(firsts & ((1u << lane) - 1));
    const uint32_t found = __ballot_sync(0xffffffff, is_first[i] && place == blockIdx.y);
    if (found) group = groups[i - lane + __ffs(found) - 1];
    before += __popc(firsts);
  }
  if (group < 0) return;
  uint32_t rows = 0;
  for (uint32_t i = lane; i < SKINNY_GROUPED_ROWS; i += 32) {
    const uint32_t mine = __ballot_sync(0xffffffff, groups[i] == group);
    if (threadIdx.x < 32 && groups[i] == group) list[rows + __popc(mine & ((1u << lane) - 1))] = i;
    rows += __popc(mine);
  }
  __syncthreads();
  for (uint32_t first = 0; first < rows; first += 8 * NT) {
    skinny_rows<T, F, 1, NT>(a, matrix_of(a, group), list, first, min(first + 8 * NT, rows), shared);
  }
}
