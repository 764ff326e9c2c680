// Drawing tokens: `photon_core::sampler` is the definition, repeated here to the last bit.
//
// One threadgroup a row, one launch. A row of 51,200 does not fit in threadgroup memory; it is read again in every pass, from
// the cache. Everything after the masses is integers, whose sums depend on no order:
//
// - The vocabulary is cut into 32 parts, one after the other, each the work of one SIMD-group. Whoever looks for the element at
//   which a running sum passes a target finds its part, cuts that into 32 parts, and so on: four levels for 51,200 ids.
// - The last id that top_k or top_p keeps is enclosed between two keys (floats as integers in the same order): a pass counts
//   what lies above each of four keys and what it weighs; the quarter with the cut in it is next. The first quarters lie 4,
//   8 and 16 octaves below the maximum, where the cut mostly leaves few ids in the first. As soon as at most CANDIDATES are
//   left, each finds its rank by comparing itself with the others. Equal values in larger numbers are cut by counting.
//
// Lanes have no 64 bits to exchange and threadgroups no atomics of 64: sums go as two halves (`simd_sum_long`). Floats are
// compared as integers wherever subnormals, which a GPU may take for zero, or NaN could make a difference. What the definition
// does not fuse is not fused: contraction is off, and the one product that is subtracted from is an `fma` by itself.
//
// What counts is the arithmetic of one core, 128 lanes: the pass that finds the maximum has some 12 operations for an id, the one
// with masses 40, which of 51,200 ids are 3.5 and 11 us of an M2. With the last levels and the launch some 20 us are expected,
// with truncation, two passes of few masses more, 28. 15 KiB of threadgroup memory.
#include "sample.h"

// `photon_core::SampleParams`.
struct SampleParams {
  float temperature, top_p, min_p;
  uint top_k;
  uint seed[2];
  uint position, stream;
  int allowed[4], banned[4];
};

struct SampleArgs {
  device int* ids;                    // [rows]
  device float* logprobs;             // [rows]
  device const void* logits;          // [rows, vocab], stride logits_stride
  device const SampleParams* params;  // [rows]
  device const uint* mask_bits;       // [masks, ceil(vocab / 32)]
  device const int* mask_rows;        // [rows], or null: no masks
  uint vocab, masks;
  uint logits_stride;
  uint padding;
};

constant constexpr uint PARTS = 32, CANDIDATES = 1024;
constant constexpr float ONE = 1073741824.0f;

// What the threads share.
struct Shared {
  ulong masses[4][PARTS];
  ulong sums[PARTS];
  ulong totals[PARTS];
  uint counts[4][PARTS];
  uint keys[CANDIDATES];
  int ids[CANDIDATES];
  uint weights[CANDIDATES];
  atomic_uint num_candidates;
  uint cut_key;
  int cut_id;
};

// Counts and masses of what lies at or above each of four keys.
struct Tally {
  uint counts[4];
  ulong masses[4];
};

// What ids are counted with.
enum : int { BY_MASS, BY_TIE };

template <typename T>
struct Row {
  device const T* logits;
  device const uint* mask;  // or null
  threadgroup Shared* shared;
  uint vocab, part;  // ids, of all and in a part
  uint lane, simdgroup, simdgroups;
  SampleParams params;
  bool is_listed;
  float largest, scale;
  uint least;  // mass that is kept
  // What is kept: keys above the cut's, and of its own those up to its id.
  uint cut_key;
  int cut_id;
  uint tie_key;  // of the ties that are counted

  // Whether all ids of a range take part.
  bool is_plain(uint first, uint end) const {
    bool is_plain = !is_listed && mask == nullptr;
    UNROLL
    for (int i = 0; i < 4; i++) is_plain = is_plain && !(uint(params.banned[i]) >= first && uint(params.banned[i]) < end);
    return is_plain;
  }

  // A logit, or minus infinity if the id does not take part; `plain`: of its range.
  float value(uint id, bool plain) const {
    if (plain) return to_float(logits[id]);
    bool takes_part = !is_listed;
    UNROLL
    for (int i = 0; i < 4; i++) takes_part = takes_part || params.allowed[i] == int(id);
    UNROLL
    for (int i = 0; i < 4; i++) takes_part = takes_part && params.banned[i] != int(id);
    if (mask != nullptr) takes_part = takes_part && (mask[id / 32] >> (id % 32) & 1) != 0;
    return takes_part ? to_float(logits[id]) : as_type<float>(MINUS_INFINITY);
  }

  // Where a part of the vocabulary ends.
  uint end_of(uint p) const { return min((p + 1) * part, vocab); }

  // `floor(2^30 exp2p((v - largest) scale))`.
  uint mass(float v) const {
    // Not the difference of infinities, which is NaN.
    const float gap = is_equal(v, largest) ? 0.0f : v - largest;
    const float x = fma(gap, scale, 0.0f);
    // Below it is 0, and so it is for the NaN of a senseless temperature.
    if (as_type<uint>(v) == MINUS_INFINITY || !(x >= -32.0f && x <= 0.0f)) return 0;
    const float whole = rint(x);
    const float f = x - whole;
    float p = 1.540353e-4f;
    p = fma(p, f, 1.3333558e-3f);
    p = fma(p, f, 9.618129e-3f);
    p = fma(p, f, 5.550411e-2f);
    p = fma(p, f, 2.402265e-1f);
    p = fma(p, f, 6.931472e-1f);
    p = fma(p, f, 1.0f);
    return uint(p * as_type<float>(uint(int(whole) + 127 + 30) << 23));
  }

  bool is_before_cut(uint key, int id) const { return key > cut_key || (key == cut_key && id <= cut_id); }

  // The mass of an id that is kept so far, else 0; or 1 if it is a tie that is kept so far, else 0.
  template <int WHAT>
  uint weight(uint id, bool plain) const {
    const float v = value(id, plain);
    const uint key = key_of(v);
    if (!is_before_cut(key, int(id))) return 0;
    if (WHAT == BY_TIE) return key == tie_key ? 1 : 0;
    const uint m = mass(v);
    return m >= least ? m : 0;
  }

  // Of all threads, in all threads.
  uint max_of_all(uint x) {
    x = simd_max(x);
    if (lane == 0) shared->counts[0][simdgroup] = x;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x = simd_max(lane < simdgroups ? shared->counts[0][lane] : 0u);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return x;
  }

  // The key of the largest value, that of minus infinity if nothing takes part, or NAN_KEY.
  uint key_of_max() {
    uint top = key_of(as_type<float>(MINUS_INFINITY));
    for (uint p = simdgroup; p < PARTS; p += simdgroups) {
      const bool plain = is_plain(p * part, end_of(p));
      for (uint id = p * part + lane; id < end_of(p); id += 32) {
        const float v = value(id, plain);
        top = max(top, (as_type<uint>(v) & 0x7fffffffu) > 0x7f800000u ? NAN_KEY : key_of(v));
      }
    }
    return max_of_all(top);
  }

  // The first id of the largest value.
  uint first_of_max() {
    uint first = vocab;
    for (uint p = simdgroup; p < PARTS && first == vocab; p += simdgroups) {
      const bool plain = is_plain(p * part, end_of(p));
      for (uint id = p * part + lane; id < end_of(p); id += 32) {
        if (is_equal(value(id, plain), largest)) first = min(first, id);
      }
    }
    // The first is what is furthest from the end.
    return vocab - max_of_all(vocab - first);
  }

  // What is kept at or above each of `pivots`, which do not increase, and below `high`. Leaves the kept mass of each part in
  // `sums` if `high` is above every key and the last pivot is 0; `total` is the mass of all that take part.
  Tally tally(thread const uint (&pivots)[4], uint high, thread ulong& total) {
    Tally t;
    UNROLL
    for (int i = 0; i < 4; i++) {
      t.counts[i] = 0;
      t.masses[i] = 0;
    }
    for (uint p = simdgroup; p < PARTS; p += simdgroups) {
      const ulong before = t.masses[3];
      ulong of_all = 0;
      const bool plain = is_plain(p * part, end_of(p));
      for (uint id = p * part + lane; id < end_of(p); id += 32) {
        const float v = value(id, plain);
        const uint key = key_of(v);
        if (key >= high || key < pivots[3]) continue;
        const uint m = mass(v);
        of_all += m;
        if (m < least || !is_before_cut(key, int(id))) continue;
        t.counts[3]++;
        t.masses[3] += m;
        // Mostly few are.
        if (key < pivots[2]) continue;
        UNROLL
        for (int i = 0; i < 3; i++) {
          t.counts[i] += key >= pivots[i] ? 1 : 0;
          t.masses[i] += key >= pivots[i] ? m : 0;
        }
      }
      const ulong sum = simd_sum_long(t.masses[3] - before), all = simd_sum_long(of_all);
      if (lane == 0) {
        shared->sums[p] = sum;
        shared->totals[p] = all;
      }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
      t.counts[i] = simd_sum(t.counts[i]);
      t.masses[i] = simd_sum_long(t.masses[i]);
      if (lane == 0) {
        shared->counts[i][simdgroup] = t.counts[i];
        shared->masses[i][simdgroup] = t.masses[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL
    for (int i = 0; i < 4; i++) {
      t.counts[i] = simd_sum(lane < simdgroups ? shared->counts[i][lane] : 0u);
      t.masses[i] = simd_sum_long(lane < simdgroups ? shared->masses[i][lane] : 0ul);
    }
    total = simd_sum_long(shared->totals[lane]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return t;
  }

  // The sum of weights; leaves that of each part in `sums`.
  template <int WHAT>
  ulong sum_parts() {
    for (uint p = simdgroup; p < PARTS; p += simdgroups) {
      ulong sum = 0;
      const bool plain = is_plain(p * part, end_of(p));
      for (uint id = p * part + lane; id < end_of(p); id += 32) sum += weight<WHAT>(id, plain);
      sum = simd_sum_long(sum);
      if (lane == 0) shared->sums[p] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const ulong kept = simd_sum_long(shared->sums[lane]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return kept;
  }

  // The first id at which the running sum of weights exceeds `target`, which is below the whole sum. `sums` holds the sums of
  // the parts; it is overwritten.
  template <int WHAT>
  uint find(ulong target) {
    uint first = 0, len = part, end = vocab;
    for (;;) {
      // Every SIMD-group finds the part for itself.
      const ulong own = shared->sums[lane], sum = simd_running_sum_long(own);
      const uint passed = ballot(sum > target);
      const ushort p = ushort(passed == 0 ? 31 : ctz(passed));
      const ulong before = sum - own;
      target -= ulong(simd_shuffle(uint(before), p)) | ulong(simd_shuffle(uint(before >> 32), p)) << 32;
      first += p * len;
      end = min(first + len, end);
      if (len <= 1) return min(first, vocab - 1);
      len = (len + PARTS - 1) / PARTS;
      const bool plain = is_plain(first, end);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      for (uint q = simdgroup; q < PARTS; q += simdgroups) {
        ulong of_part = 0;
        for (uint id = first + q * len + lane; id < min(first + (q + 1) * len, end); id += 32) of_part += weight<WHAT>(id, plain);
        of_part = simd_sum_long(of_part);
        if (lane == 0) shared->sums[q] = of_part;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  // Moves the cut to the last id in rank that has at most `limit` before it: ids if `by_count`, else mass. `t` is the tally
  // at `pivots` of what is below `high`.
  void cut(bool by_count, ulong limit, Tally t, thread uint (&pivots)[4], uint high) {
    ulong above = 0;
    uint inside, low;
    for (;;) {
      // The lowest quarter that holds anything and has no more than the limit above it.
      int quarter = 0;
      UNROLL
      for (int i = 1; i < 4; i++) {
        const ulong upper = above + (by_count ? ulong(t.counts[i - 1]) : t.masses[i - 1]);
        if (t.counts[i] > t.counts[i - 1] && upper <= limit) quarter = i;
      }
      low = pivots[0];
      inside = t.counts[0];
      ulong of_upper = 0;
      UNROLL
      for (int i = 1; i < 4; i++) {
        if (quarter != i) continue;
        of_upper = by_count ? ulong(t.counts[i - 1]) : t.masses[i - 1];
        inside = t.counts[i] - t.counts[i - 1];
        low = pivots[i];
        high = pivots[i - 1];
      }
      above += of_upper;
      if (inside <= CANDIDATES || high - low <= 1) break;
      UNROLL
      for (int i = 0; i < 4; i++) pivots[i] = low + uint(ulong(high - low) * uint(3 - i) / 4);
      ulong total;
      t = tally(pivots, high, total);
    }
    if (inside <= CANDIDATES) {
      rank(by_count, limit, above, low, high);
      return;
    }
    // All have one key, hence one mass.
    const ulong each = by_count ? 1 : ulong(mass(value_of(low)));
    cut_ties(low, min((limit - above) / each + 1, ulong(inside)));
  }

  // The cut comes behind the first `num` ids that have this key.
  void cut_ties(uint key, ulong num) {
    tie_key = key;
    sum_parts<BY_TIE>();
    const uint last = find<BY_TIE>(num - 1);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    cut_key = key;
    cut_id = int(last);
  }

  // The same where at most CANDIDATES keys lie from `low` to below `high`.
  void rank(bool by_count, ulong limit, ulong above, uint low, uint high) {
    const uint first = simdgroup * 32 + lane, threads = simdgroups * 32;
    if (first == 0) atomic_store_explicit(&shared->num_candidates, 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint p = simdgroup; p < PARTS; p += simdgroups) {
      const bool plain = is_plain(p * part, end_of(p));
      for (uint id = p * part + lane; id < end_of(p); id += 32) {
        const uint key = key_of(value(id, plain));
        if (key < low || key >= high) continue;
        const uint m = weight<BY_MASS>(id, plain);
        if (m == 0) continue;
        const uint at = atomic_fetch_add_explicit(&shared->num_candidates, 1u, memory_order_relaxed);
        shared->keys[at] = key;
        shared->ids[at] = int(id);
        shared->weights[at] = by_count ? 1 : m;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint num = atomic_load_explicit(&shared->num_candidates, memory_order_relaxed);
    for (uint i = first; i < num; i += threads) {
      const uint key = shared->keys[i];
      const int id = shared->ids[i];
      ulong before = above;
      for (uint j = 0; j < num; j++) {
        const uint other = shared->keys[j];
        before += other > key || (other == key && shared->ids[j] < id) ? shared->weights[j] : 0;
      }
      // The last that is kept is the one whose successor, if there is one, is not.
      if (before <= limit && before + shared->weights[i] > limit) {
        shared->cut_key = key;
        shared->cut_id = id;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    cut_key = shared->cut_key;
    cut_id = shared->cut_id;
  }

  // Moves the cut to where top_k and top_p put it. `t` is the tally at `pivots`, `top` the largest key. Gives the mass that is
  // kept; that of each part is in `sums`.
  ulong truncate(Tally t, thread uint (&pivots)[4], uint top) {
    ulong kept = t.masses[3];
    const bool limits_count = params.top_k > 0 && params.top_k < t.counts[3];
    if (limits_count) {
      cut(true, params.top_k - 1, t, pivots, top + 1);
      kept = sum_parts<BY_MASS>();
    }
    if (!(params.top_p < 1.0f)) return kept;
    if (limits_count) {
      UNROLL
      for (int i = 0; i < 4; i++) pivots[i] = cut_key + uint(ulong(top + 1 - cut_key) * uint(3 - i) / 4);
      ulong total;
      t = tally(pivots, top + 1, total);
    }
    const ulong share = ulong(uint(max(params.top_p, 0.0f) * 65536.0f));
    cut(false, (kept * share) >> 16, t, pivots, top + 1);
    return sum_parts<BY_MASS>();
  }
};

// threadgroups = rows, threads = 32 to 1024 in whole SIMD-groups.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(1024)]] void sample(
    constant SampleArgs& a [[buffer(0)]],
    uint row_index [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup Shared shared;
  Row<T> row;
  row.logits = (device const T*)a.logits + size_t(row_index) * a.logits_stride;
  row.mask = nullptr;
  row.shared = &shared;
  row.vocab = a.vocab;
  row.part = (a.vocab + PARTS - 1) / PARTS;
  row.lane = lane;
  row.simdgroup = simdgroup;
  row.simdgroups = simdgroups;
  row.params = a.params[row_index];
  const SampleParams params = row.params;
  row.is_listed = params.allowed[0] >= 0 || params.allowed[1] >= 0 || params.allowed[2] >= 0 || params.allowed[3] >= 0;
  if (a.mask_rows != nullptr) {
    const uint mask = uint(a.mask_rows[row_index]);
    if (mask < a.masks) row.mask = a.mask_bits + size_t(mask) * ((a.vocab + 31) / 32);
  }

  const uint top = row.key_of_max();
  const bool is_greedy = params.temperature == 0.0f;
  const float temperature = is_greedy ? 1.0f : params.temperature;
  row.largest = value_of(top);
  row.scale = 1.44269504088896340736f / temperature;
  row.least = is_greedy ? 1 : max(uint(clamp(params.min_p, 0.0f, 1.0f) * ONE), 1u);
  row.cut_key = 0;
  row.cut_id = 0x7fffffff;
  row.tie_key = 0;

  // Octaves below the maximum; above it where nothing is cut.
  uint pivots[4] = {NAN_KEY, NAN_KEY, NAN_KEY, 0};
  if (!is_greedy && (params.top_k > 0 || params.top_p < 1.0f)) {
    UNROLL
    for (int i = 0; i < 3; i++) pivots[i] = key_of(row.largest - float(4 << i) / row.scale);
  }
  ulong total;
  const Tally t = row.tally(pivots, top + 1, total);

  if (top == NAN_KEY || t.counts[3] == 0) {
    if (thread_index == 0) {
      a.ids[row_index] = -1;
      a.logprobs[row_index] = as_type<float>(0x7fc00000u);
    }
    return;
  }
  uint id;
  if (is_greedy) {
    id = row.first_of_max();
  } else {
    const ulong kept = row.truncate(t, pivots, top);
    const ulong random = philox(params.seed[0], params.seed[1], params.position, params.stream);
    id = row.template find<BY_MASS>(upper_product(random, kept));
  }
  if (thread_index == 0) {
    const float v = row.value(id, false);
    const float gap = is_equal(v, row.largest) ? 0.0f : v - row.largest;
    a.ids[row_index] = int(id);
    a.logprobs[row_index] = gap / temperature - log(float(total) / ONE);
  }
}

template [[host_name("sample_f32")]] [[kernel]] decltype(sample<float>) sample<float>;
template [[host_name("sample_f16")]] [[kernel]] decltype(sample<half>) sample<half>;
template [[host_name("sample_bf16")]] [[kernel]] decltype(sample<ushort>) sample<ushort>;
