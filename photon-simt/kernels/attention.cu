// Flash attention of the usual shape, `out = softmax(scale q k^T) v`: everything at once that the simulator must get right,
// and the patient of its tests: `planted.diff` has bugs for it.
//
// grid = (n / 64, heads), block = 4 warps of 16 query rows each; keys in tiles of 32, two of them in flight.
#include "ptx.cuh"

constexpr int DIM = 64, QUERIES = 64, KEYS = 32;
// Rows lie 16 bytes further apart than they are long, so that eight of them meet all banks.
constexpr int STRIDE = DIM + 8;

struct AttentionArgs {
  const bf16* q;  // [heads, n, 64]
  const bf16* k;
  const bf16* v;
  float* out;  // [heads, n, 64]
  int32_t n;
  float scale;
};

// Rows [first, first + ROWS) of a matrix to shared memory.
template <int ROWS>
DEVICE void load_rows(bf16* to, const bf16* from, int first) {
  for (int i = threadIdx.x; i < ROWS * DIM / 8; i += blockDim.x) {
    const int row = i / (DIM / 8), column = i % (DIM / 8) * 8;
    cp_async_16(to + row * STRIDE + column, from + (first + row) * DIM + column);
  }
}

// Over the four lanes that share a row.
template <class F>
DEVICE float over_row(float x, F f) {
  x = f(x, __shfl_xor_sync(0xffffffff, x, 1));
  x = f(x, __shfl_xor_sync(0xffffffff, x, 2));
  return x;
}

extern "C" __global__ void __launch_bounds__(128) attention(const AttentionArgs a) {
  alignas(16) __shared__ bf16 queries[QUERIES * STRIDE];
  alignas(16) __shared__ bf16 keys[2][KEYS * STRIDE];
  alignas(16) __shared__ bf16 values[2][KEYS * STRIDE];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const size_t head = static_cast<size_t>(blockIdx.y) * a.n * DIM;
  const auto load_tile = [&](int tile, int buffer) {
    load_rows<KEYS>(keys[buffer], a.k + head, tile * KEYS);
    load_rows<KEYS>(values[buffer], a.v + head, tile * KEYS);
    cp_async_commit();
  };
  load_rows<QUERIES>(queries, a.q + head, blockIdx.x * QUERIES);
  load_tile(0, 0);

  float sums[DIM / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {};
  const auto largest = [](float x, float y) { return fmaxf(x, y); };
  const int tiles = a.n / KEYS;
  for (int tile = 0; tile < tiles; tile++) {
    if (tile + 1 < tiles) {
      load_tile(tile + 1, (tile + 1) % 2);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    const bf16* const k = keys[tile % 2];
    const bf16* const v = values[tile % 2];

    float scores[KEYS / 8][4] = {};
    for (int d = 0; d < DIM; d += 16) {
      uint32_t q[4];
      ldmatrix_x4(q, queries + (warp * 16 + lane % 16) * STRIDE + d + lane / 16 * 8);
      for (int j = 0; j < KEYS / 8; j++) {
        uint32_t b[2];
        ldmatrix_x2(b, k + (j * 8 + lane % 8) * STRIDE + d + lane / 8 % 2 * 8);
        mma_m16n8k16_bf16(scores[j], q, b);
      }
    }

    uint32_t weights[KEYS / 8][2];
    for (int half = 0; half < 2; half++) {
      float now = most[half], sum = 0.0f;
      for (int j = 0; j < KEYS / 8; j++) {
        for (int i = 2 * half; i < 2 * half + 2; i++) now = fmaxf(now, scores[j][i] *= a.scale);
      }
      now = over_row(now, largest);
      const float before = __expf(most[half] - now);
      for (int j = 0; j < KEYS / 8; j++) {
        const float x = __expf(scores[j][2 * half] - now), y = __expf(scores[j][2 * half + 1] - now);
        sum += x + y;
        weights[j][half] = pack_bf16(x, y);
      }
      total[half] = total[half] * before + sum;
      most[half] = now;
      for (int d = 0; d < DIM / 8; d++) {
        for (int i = 2 * half; i < 2 * half + 2; i++) sums[d][i] *= before;
      }
    }

    for (int j = 0; j < KEYS; j += 16) {
      const uint32_t w[4] = {weights[j / 8][0], weights[j / 8][1], weights[j / 8 + 1][0], weights[j / 8 + 1][1]};
      for (int d = 0; d < DIM / 8; d++) {
        uint32_t b[2];
        ldmatrix_x2_trans(b, v + (j + lane % 16) * STRIDE + d * 8);
        mma_m16n8k16_bf16(sums[d], w, b);
      }
    }
    __syncthreads();
  }

  for (int half = 0; half < 2; half++) {
    total[half] = over_row(total[half], [](float x, float y) { return x + y; });
    const int row = blockIdx.x * QUERIES + warp * 16 + half * 8 + lane / 4;
    float* const out = a.out + head + static_cast<size_t>(row) * DIM;
    for (int d = 0; d < DIM / 8; d++) {
      for (int i = 0; i < 2; i++) {
        const int column = d * 8 + lane % 4 * 2 + i;
        out[column] = sums[d][2 * half + i] / total[half];
      }
    }
  }
}
