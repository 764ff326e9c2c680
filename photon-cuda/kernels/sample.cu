// Drawing tokens: `photon_core::sampler` is the definition, repeated here to the last bit.
//
// One block a row, one launch. The row's values are read once and kept in shared memory (51,200 of f32 take 200 KiB; those
// that do not fit are read again). Everything after is integers, whose sums depend on no order:
//
// - The vocabulary is cut into 32 parts, one after the other, each the work of one warp. Whoever looks for the element at
//   which a running sum passes a target finds its part, cuts that into 32 parts, and so on: four levels for 51,200 ids.
// - The last id that top_k or top_p keeps is enclosed between two keys (floats as integers in the same order): a pass counts
//   what lies above each of four keys and what it weighs; the quarter with the cut in it is next. The first quarters lie 4,
//   8 and 16 octaves below the maximum, where the cut mostly leaves few ids in the first. As soon as at most CANDIDATES are
//   left, each finds its rank by comparing itself with the others. Equal values in larger numbers are cut by counting.
//
// A pass without masses is 51,200 shared loads, 0.9 us at 128 bytes a cycle; reading the row by one SM is 2 us, its masses,
// some 15 operations each, 3 us: expected 7 us without truncation, 8 with.
#include "elements.cuh"

// `photon_core::SampleParams`.
struct SampleParams {
  float temperature, top_p, min_p;
  uint32_t top_k;
  uint32_t seed[2];
  uint32_t position, stream;
  int32_t allowed[4], banned[4];
};

struct SampleArgs {
  int32_t* ids;                // [rows]
  float* logprobs;             // [rows]
  const void* logits;          // [rows, vocab], stride logits_stride
  const SampleParams* params;  // [rows]
  const uint32_t* mask_bits;   // [masks, ceil(vocab / 32)]
  const int32_t* mask_rows;    // [rows], or null: no masks
  uint32_t vocab, masks;
  uint32_t logits_stride;
  uint32_t staged;  // as many values fit in the dynamic shared memory
};

constexpr int PARTS = 32;
constexpr uint32_t CANDIDATES = 1024;
constexpr float ONE = 1073741824.0f;
constexpr uint32_t NAN_KEY = 0xffffffff;

// An integer that orders as the float does, minus zero below zero.
DEVICE uint32_t key_of(float v) {
  const uint32_t bits = __float_as_uint(v);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

DEVICE float value_of(uint32_t key) { return __uint_as_float(key & 0x80000000 ? key & 0x7fffffff : ~key); }

// Of all lanes, in all lanes; each has less than 2^43.
DEVICE uint64_t sum_u64(uint64_t x) {
  const uint32_t low = __reduce_add_sync(0xffffffff, (uint32_t)x & 0xffffff);
  return low + ((uint64_t)__reduce_add_sync(0xffffffff, (uint32_t)(x >> 24)) << 24);
}

// The first two words of a block of Philox4x32-10.
DEVICE uint64_t philox(uint32_t k0, uint32_t k1, uint32_t position, uint32_t stream) {
  uint32_t c0 = position, c1 = stream, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; round++) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0 | (uint64_t)c1 << 32;
}

// What the block's threads share besides the values.
struct Shared {
  uint64_t masses[4][PARTS];
  uint32_t counts[4][PARTS];
  uint64_t sums[PARTS];
  uint64_t totals[PARTS];
  uint32_t keys[CANDIDATES];
  int32_t ids[CANDIDATES];
  uint32_t weights[CANDIDATES];
  uint32_t num_candidates;
  uint32_t cut_key;
  int32_t cut_id;
};

// Counts and masses of what lies at or above each of four keys.
struct Tally {
  uint32_t counts[4];
  uint64_t masses[4];
};

template <class T> struct Row {
  const SampleArgs& a;
  const T* logits;
  const uint32_t* mask;  // or null
  float* staged;
  Shared& shared;
  int lane, warp, warps;
  uint32_t part;  // ids in a part of the vocabulary
  SampleParams params;
  bool is_listed;
  float max, scale;
  uint32_t floor;  // the least mass that is kept
  // What is kept: keys above the cut's, and of its own those up to its id.
  uint32_t cut_key;
  int32_t cut_id;

  // A logit, or minus infinity if the id does not take part.
  DEVICE float read(uint32_t id) const {
    const float v = to_float(logits[id]);
    bool takes_part = !is_listed;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      takes_part = takes_part || (is_listed && params.allowed[i] == (int32_t)id);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) takes_part = takes_part && params.banned[i] != (int32_t)id;
    if (mask != nullptr) takes_part = takes_part && (mask[id / 32] >> (id % 32) & 1);
    return takes_part ? v : -INFINITY;
  }

  DEVICE float value(uint32_t id) const { return id < a.staged ? staged[id] : read(id); }

  // `floor(2^30 exp2p((v - max) scale))`. No product and sum may be fused that the definition does not fuse.
  DEVICE uint32_t mass(float v) const {
    const float x = __fmul_rn(v == max ? 0.0f : __fsub_rn(v, max), scale);
    // Below it is 0, and so it is for the NaN of a senseless temperature.
    if (v == -INFINITY || !(x >= -32.0f && x <= 0.0f)) return 0;
    const float whole = rintf(x);
    const float f = __fsub_rn(x, whole);
    float p = 1.540353e-4f;
    p = __fmaf_rn(p, f, 1.3333558e-3f);
    p = __fmaf_rn(p, f, 9.618129e-3f);
    p = __fmaf_rn(p, f, 5.550411e-2f);
    p = __fmaf_rn(p, f, 2.402265e-1f);
    p = __fmaf_rn(p, f, 6.931472e-1f);
    p = __fmaf_rn(p, f, 1.0f);
    return (uint32_t)__fmul_rn(p, __uint_as_float((uint32_t)((int)whole + 127 + 30) << 23));
  }

  DEVICE bool is_before_cut(uint32_t key, int32_t id) const { return key > cut_key || (key == cut_key && id <= cut_id); }

  // The mass of an id that is kept so far, else 0.
  DEVICE uint32_t kept_mass(float v, uint32_t id) const {
    if (!is_before_cut(key_of(v), (int32_t)id)) return 0;
    const uint32_t m = mass(v);
    return m >= floor ? m : 0;
  }

  // Reads the row. Returns the key of the maximum, that of minus infinity if nothing takes part, or NAN_KEY.
  DEVICE uint32_t stage() {
    uint32_t top = key_of(-INFINITY);
    for (uint32_t p = warp; p < PARTS; p += warps) {
      const uint32_t first = p * part, end = min(first + part, a.vocab);
      bool is_plain = !is_listed && mask == nullptr;
#pragma unroll
      for (int i = 0; i < 4; i++) is_plain = is_plain && !((uint32_t)params.banned[i] >= first && (uint32_t)params.banned[i] < end);
      if (is_plain) {
#pragma unroll 10
        for (uint32_t id = first + lane; id < end; id += 32) top = max_of(top, keep(id, to_float(logits[id])));
      } else {
        for (uint32_t id = first + lane; id < end; id += 32) top = max_of(top, keep(id, read(id)));
      }
    }
    top = __reduce_max_sync(0xffffffff, top);
    if (lane == 0) shared.counts[0][warp] = top;
    __syncthreads();
    top = __reduce_max_sync(0xffffffff, lane < warps ? shared.counts[0][lane] : 0);
    __syncthreads();
    return top;
  }

  DEVICE static uint32_t max_of(uint32_t a, uint32_t b) { return a > b ? a : b; }

  DEVICE uint32_t keep(uint32_t id, float v) {
    if (id < a.staged) staged[id] = v;
    return v != v ? NAN_KEY : key_of(v);
  }

  // The first id of the maximum.
  DEVICE uint32_t first_of_max() {
    uint32_t first = a.vocab;
    for (uint32_t p = warp; p < PARTS && first == a.vocab; p += warps) {
      for (uint32_t id = p * part + lane; id < min((p + 1) * part, a.vocab); id += 32) {
        if (value(id) == max) first = min(first, id);
      }
    }
    first = __reduce_min_sync(0xffffffff, first);
    if (lane == 0) shared.counts[0][warp] = first;
    __syncthreads();
    first = __reduce_min_sync(0xffffffff, lane < warps ? shared.counts[0][lane] : a.vocab);
    __syncthreads();
    return first;
  }

  // What is kept at or above each of `pivots`, which do not increase, and below `high`. Leaves the kept mass of each part in
  // `shared.sums` if `high` is above every key and the last pivot is 0; adds the mass of all that take part to `total`.
  DEVICE Tally tally(const uint32_t (&pivots)[4], uint32_t high, uint64_t* total) {
    Tally t = {};
    for (uint32_t p = warp; p < PARTS; p += warps) {
      const uint64_t before = t.masses[3];
      uint64_t of_all = 0;
      for (uint32_t id = p * part + lane; id < min((p + 1) * part, a.vocab); id += 32) {
        const float v = value(id);
        const uint32_t key = key_of(v);
        if (key >= high || key < pivots[3]) continue;
        const uint32_t m = mass(v);
        of_all += m;
        if (m < floor || !is_before_cut(key, (int32_t)id)) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          t.counts[i] += key >= pivots[i] ? 1 : 0;
          t.masses[i] += key >= pivots[i] ? m : 0;
        }
      }
      const uint64_t sum = sum_u64(t.masses[3] - before), all = sum_u64(of_all);
      if (lane == 0) {
        shared.sums[p] = sum;
        shared.totals[p] = all;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      t.counts[i] = __reduce_add_sync(0xffffffff, t.counts[i]);
      t.masses[i] = sum_u64(t.masses[i]);
      if (lane == 0) {
        shared.counts[i][warp] = t.counts[i];
        shared.masses[i][warp] = t.masses[i];
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      t.counts[i] = __reduce_add_sync(0xffffffff, lane < warps ? shared.counts[i][lane] : 0);
      t.masses[i] = sum_u64(lane < warps ? shared.masses[i][lane] : 0);
    }
    if (total != nullptr) *total = sum_u64(shared.totals[lane]);
    __syncthreads();
    return t;
  }

  // The kept mass; leaves that of each part in `shared.sums`.
  DEVICE uint64_t sum_parts() {
    for (uint32_t p = warp; p < PARTS; p += warps) {
      uint64_t sum = 0;
      for (uint32_t id = p * part + lane; id < min((p + 1) * part, a.vocab); id += 32) sum += kept_mass(value(id), id);
      sum = sum_u64(sum);
      if (lane == 0) shared.sums[p] = sum;
    }
    __syncthreads();
    const uint64_t kept = sum_u64(shared.sums[lane]);
    __syncthreads();
    return kept;
  }

  // The first id at which the running sum of `weight` exceeds `target`, which is below the whole sum. `shared.sums` holds
  // the sums of the parts; it is overwritten.
  template <class Weight> DEVICE uint32_t find(uint64_t target, Weight weight) {
    uint32_t first = 0, len = part, end = a.vocab;
    for (;;) {
      // Every warp finds the part for itself.
      uint64_t sum = shared.sums[lane];
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) {
        const uint64_t before = __shfl_up_sync(0xffffffff, sum, lanes);
        if (lane >= lanes) sum += before;
      }
      const uint32_t passed = __ballot_sync(0xffffffff, sum > target);
      const int p = passed == 0 ? 31 : __ffs((int)passed) - 1;
      const uint64_t below = __shfl_sync(0xffffffff, sum, p == 0 ? 0 : p - 1);
      target -= p == 0 ? 0 : below;
      first += p * len;
      end = min(first + len, end);
      if (len <= 1) return min(first, a.vocab - 1);
      len = (len + PARTS - 1) / PARTS;
      __syncthreads();
      for (uint32_t q = warp; q < PARTS; q += warps) {
        uint64_t of_part = 0;
        for (uint32_t id = first + q * len + lane; id < min(first + (q + 1) * len, end); id += 32) of_part += weight(value(id), id);
        of_part = sum_u64(of_part);
        if (lane == 0) shared.sums[q] = of_part;
      }
      __syncthreads();
    }
  }

  // Moves the cut to the last id in rank that has at most `limit` before it: ids if `by_count`, else mass. `t` is the tally
  // at `pivots` of what is below `high`.
  DEVICE void cut(bool by_count, uint64_t limit, Tally t, uint32_t (&pivots)[4], uint32_t high) {
    uint64_t above = 0;
    uint32_t inside, low;
    for (;;) {
      // The lowest quarter that holds anything and has no more than the limit above it.
      int quarter = 0;
#pragma unroll
      for (int i = 1; i < 4; i++) {
        const uint64_t upper = above + (by_count ? t.counts[i - 1] : t.masses[i - 1]);
        if (t.counts[i] > t.counts[i - 1] && upper <= limit) quarter = i;
      }
      low = pivots[0];
      inside = t.counts[0];
#pragma unroll
      for (int i = 1; i < 4; i++) {
        if (quarter != i) continue;
        above += by_count ? t.counts[i - 1] : t.masses[i - 1];
        inside = t.counts[i] - t.counts[i - 1];
        low = pivots[i];
        high = pivots[i - 1];
      }
      if (inside <= CANDIDATES || high - low <= 1) break;
#pragma unroll
      for (int i = 0; i < 4; i++) pivots[i] = low + (uint32_t)((uint64_t)(high - low) * (3 - i) / 4);
      t = tally(pivots, high, nullptr);
    }
    if (inside <= CANDIDATES) {
      rank(by_count, limit, above, low, high);
    } else {
      // All have one key, hence one mass.
      const uint64_t each = by_count ? 1 : mass(value_of(low));
      const uint64_t num = min((limit - above) / each + 1, (uint64_t)inside);
      cut_ties(low, num);
    }
  }

  // The cut comes behind the first `num` ids that have this key.
  DEVICE void cut_ties(uint32_t key, uint64_t num) {
    const uint32_t old_key = cut_key;
    const int32_t old_id = cut_id;
    auto is_tie = [=](float v, uint32_t id) -> uint32_t { return key_of(v) == key && (key > old_key || (int32_t)id <= old_id); };
    for (uint32_t p = warp; p < PARTS; p += warps) {
      uint64_t sum = 0;
      for (uint32_t id = p * part + lane; id < min((p + 1) * part, a.vocab); id += 32) sum += is_tie(value(id), id);
      sum = sum_u64(sum);
      if (lane == 0) shared.sums[p] = sum;
    }
    __syncthreads();
    const uint32_t last = find(num - 1, is_tie);
    __syncthreads();
    cut_key = key;
    cut_id = (int32_t)last;
  }

  // The same where at most CANDIDATES keys lie from `low` to below `high`.
  DEVICE void rank(bool by_count, uint64_t limit, uint64_t above, uint32_t low, uint32_t high) {
    if (threadIdx.x == 0) shared.num_candidates = 0;
    __syncthreads();
    for (uint32_t p = warp; p < PARTS; p += warps) {
      for (uint32_t id = p * part + lane; id < min((p + 1) * part, a.vocab); id += 32) {
        const float v = value(id);
        const uint32_t key = key_of(v);
        if (key < low || key >= high) continue;
        const uint32_t m = kept_mass(v, id);
        if (m == 0) continue;
        const uint32_t at = atomicAdd(&shared.num_candidates, 1);
        shared.keys[at] = key;
        shared.ids[at] = (int32_t)id;
        shared.weights[at] = by_count ? 1 : m;
      }
    }
    __syncthreads();
    const uint32_t num = shared.num_candidates;
    for (uint32_t i = threadIdx.x; i < num; i += blockDim.x) {
      const uint32_t key = shared.keys[i];
      const int32_t id = shared.ids[i];
      uint64_t before = above;
            for (uint32_t j = 0; j < num; j++) {
        const uint32_t other = shared.keys[j];
        before += other > key || (other == key && shared.ids[j] < id) ? shared.weights[j] : 0;
      }
      // The last that is kept is the one whose successor, if there is one, is not.
      const bool is_last = before <= limit && before + shared.weights[i] > limit;
      if (is_last) {
        shared.cut_key = key;
        shared.cut_id = id;
      }
    }
    __syncthreads();
    cut_key = shared.cut_key;
    cut_id = shared.cut_id;
  }
};

template <class T> DEVICE void sample_row(const SampleArgs& a) {
  enter();
  alignas(16) __shared__ Shared shared[1];
  DYNAMIC_SHARED(float, staged);
  const uint32_t row_index = blockIdx.x;
  Row<T> row = {a, (const T*)a.logits + (size_t)row_index * a.logits_stride, nullptr, staged, shared[0]};
  row.lane = threadIdx.x % 32;
  row.warp = threadIdx.x / 32;
  row.warps = blockDim.x / 32;
  row.part = (a.vocab + PARTS - 1) / PARTS;
  row.params = a.params[row_index];
  const SampleParams& params = row.params;
  row.is_listed = params.allowed[0] >= 0 || params.allowed[1] >= 0 || params.allowed[2] >= 0 || params.allowed[3] >= 0;
  if (a.mask_rows != nullptr) {
    const uint32_t mask = (uint32_t)a.mask_rows[row_index];
    if (mask < a.masks) row.mask = a.mask_bits + (size_t)mask * ((a.vocab + 31) / 32);
  }

  const uint32_t top = row.stage();
  const bool is_greedy = params.temperature == 0.0f;
  const float temperature = is_greedy ? 1.0f : params.temperature;
  row.max = value_of(top);
  row.scale = __fdiv_rn(1.44269504088896340736f, temperature);
  row.floor = is_greedy ? 1 : max((uint32_t)__fmul_rn(fmaxf(fminf(params.min_p, 1.0f), 0.0f), ONE), 1u);
  row.cut_key = 0;
  row.cut_id = 0x7fffffff;

  // Octaves below the maximum.
  uint32_t pivots[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 3; i++) pivots[i] = key_of(row.max - (float)(4 << i) / row.scale);
  uint64_t total;
  Tally t = row.tally(pivots, top + 1, &total);

  uint32_t id;
  if (top == NAN_KEY || t.counts[3] == 0) {
    if (threadIdx.x == 0) {
      a.ids[row_index] = -1;
      a.logprobs[row_index] = NAN;
    }
    return;
  } else if (is_greedy) {
    id = row.first_of_max();
  } else {
    const bool limits_count = params.top_k > 0 && params.top_k < t.counts[3];
    const bool limits_mass = params.top_p < 1.0f;
    uint64_t kept = t.masses[3];
    if (limits_count) {
      row.cut(true, params.top_k - 1, t, pivots, top + 1);
      kept = row.sum_parts();
    }
    if (limits_mass) {
      if (limits_count) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          pivots[i] = row.cut_key + (uint32_t)((uint64_t)(top + 1 - row.cut_key) * (3 - i) / 4);
        }
        t = row.tally(pivots, top + 1, nullptr);
      }
      const uint64_t share = (uint64_t)__fmul_rn(fmaxf(params.top_p, 0.0f), 65536.0f);
      row.cut(false, (kept * share) >> 16, t, pivots, top + 1);
      kept = row.sum_parts();
    }
    const uint64_t random = philox(params.seed[0], params.seed[1], params.position, params.stream);
    const uint64_t target = __umul64hi(random, kept);
    id = row.find(target, [&](float v, uint32_t i) -> uint32_t { return row.kept_mass(v, i); });
  }
  if (threadIdx.x == 0) {
    const float v = row.value(id);
    const float gap = v == row.max ? 0.0f : v - row.max;
    a.ids[row_index] = (int32_t)id;
    a.logprobs[row_index] = gap / temperature - logf((float)total / ONE);
  }
}

// grid = rows, block = 32 to 1024 in whole warps, dynamic shared memory: `staged` floats.
extern "C" __global__ void __launch_bounds__(1024) sample_f32(const SampleArgs a) { sample_row<float>(a); }
extern "C" __global__ void __launch_bounds__(1024) sample_f16(const SampleArgs a) { sample_row<f16>(a); }
extern "C" __global__ void __launch_bounds__(1024) sample_bf16(const SampleArgs a) { sample_row<bf16>(a); }
