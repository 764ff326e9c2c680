// Scales q and v of every head by content and position.
#include "elements.cuh"

struct TauArgs {
  void* qkv;                 // [tokens, 3 heads head_dim], stride qkv_stride
  const void* scores;        // [tokens, 2 heads], stride scores_stride
  const float* alpha;        // [heads]
  const int32_t* positions;  // [tokens]
  uint32_t heads, head_dim;
  uint32_t qkv_stride, scores_stride;
  uint32_t qkv_type, scores_type;
  uint32_t align;  // bytes that a head of a row begins at a multiple of, at most 16
  uint32_t padding;
};

// One block a token: a factor for each head of q and of v first, then eight elements a thread and turn.  grid = tokens,
// block = 256, dynamic shared memory: 2 heads floats. Bound by bytes: q and v read and written once.
extern "C" __global__ void __launch_bounds__(256) tau(const TauArgs a) {
  enter();
  DYNAMIC_SHARED(float, factors);
  const uint32_t token = blockIdx.x, width = a.heads * a.head_dim;
  const int32_t position = a.positions[token];
  if (position < 0) return;
  const float depth = logf((float)position + 1.0f);
  for (uint32_t i = threadIdx.x; i < 2 * a.heads; i += 256) {
    const float score = load(a.scores, (size_t)token * a.scores_stride + i, a.scores_type);
    factors[i] = tanhf(score) + 1.0f / (1.0f + expf(-a.alpha[i % a.heads] * depth)) + 0.5f;
  }
  __syncthreads();
  const uint32_t vectors = (a.head_dim + 7) / 8;
  for (uint32_t i = threadIdx.x; i < 2 * a.heads * vectors; i += 256) {
    const uint32_t head = i / vectors, first = i % vectors * 8;
    // The heads of v are those of q two widths further on.
    const size_t at = (size_t)token * a.qkv_stride + head * a.head_dim + (head < a.heads ? 0 : width) + first;
    const int count = (int)(a.head_dim - first);
    float x[8];
    load8(a.qkv, at, a.qkv_type, count, a.align, x);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= factors[head];
    store8(a.qkv, at, a.qkv_type, count, a.align, x);
  }
}
