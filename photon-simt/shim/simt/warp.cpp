// What the lanes of a warp make of what they gave each other: once for all of them, by whoever came last.
#include "ptx.hpp"

namespace simt {

namespace {

// What a lane reads that nobody gave: not a number, of whatever type.
constexpr uint64_t POISON = 0x7fff7fff7fff7fff;

template <class F>
SIMT_QUIET void for_lanes(uint32_t mask, F f) {
  for (; mask; mask &= mask - 1) f(static_cast<uint32_t>(__builtin_ctz(mask)));
}

template <class F>
SIMT_QUIET void reduce(const Slot* in, Slot* out, uint32_t mask, F f) {
  uint32_t total = in[__builtin_ctz(mask)].u32[0];
  for_lanes(mask & (mask - 1), [&](uint32_t l) { total = f(total, in[l].u32[0]); });
  for_lanes(mask, [&](uint32_t l) { out[l].u32[0] = total; });
}

int32_t as_signed(uint32_t x) { return static_cast<int32_t>(x); }

}  // namespace

SIMT_QUIET void shuffle(const Slot* in, Slot* out, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) {
    const uint32_t from = in[l].u32[2];
    out[l].u64[0] = mask >> from & 1 ? in[from].u64[0] : POISON;
  });
}
SIMT_QUIET void ballot(const Slot* in, Slot* out, uint32_t mask) {
  uint32_t votes = 0;
  for_lanes(mask, [&](uint32_t l) { votes |= in[l].u32[0] << l; });
  for_lanes(mask, [&](uint32_t l) { out[l].u32[0] = votes; });
}
void reduce_add(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return a + b; }); }
void reduce_min(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return std::min(a, b); }); }
void reduce_max(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return std::max(a, b); }); }
void reduce_min_signed(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return as_signed(a) < as_signed(b) ? a : b; }); }
void reduce_max_signed(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return as_signed(a) > as_signed(b) ? a : b; }); }
void reduce_and(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return a & b; }); }
void reduce_or(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return a | b; }); }
void reduce_xor(const Slot* in, Slot* out, uint32_t mask) { reduce(in, out, mask, [](uint32_t a, uint32_t b) { return a ^ b; }); }
SIMT_QUIET void match(const Slot* in, Slot* out, uint32_t mask) {
  for_lanes(mask, [&](uint32_t l) {
    uint32_t same = 0;
    for_lanes(mask, [&](uint32_t m) { same |= (in[l].u64[0] == in[m].u64[0]) << m; });
    out[l].u32[0] = same;
  });
}

// ---- Matrices

SIMT_QUIET void whole_warp(uint32_t mask, Site site) {
  if (mask != 0xffffffff) fail(site, "lanes %08x of the warp have returned, and this needs all of them,", ~mask);
}

SIMT_QUIET void ldmatrix_combine(const Slot* in, Slot* out, uint32_t mask) {
  whole_warp(mask, current->site);
  for (uint32_t l = 0; l < LANES; l++)
    for (uint32_t m = 0; m < 4; m++) out[l].u32[m] = in[m * 8 + l / 4].u32[l % 4];
}
SIMT_QUIET void ldmatrix_trans_combine(const Slot* in, Slot* out, uint32_t mask) {
  whole_warp(mask, current->site);
  for (uint32_t l = 0; l < LANES; l++)
    for (uint32_t m = 0; m < 4; m++)
      for (uint32_t i = 0; i < 2; i++) out[l].u16[2 * m + i] = in[m * 8 + 2 * (l % 4) + i].u16[l / 4];
}

namespace {

// d [16, 8] += a [16, K] b [K, 8].
template <class T, unsigned K>
void multiply(const T (&a)[16][K], const T (&b)[K][8], T (&d)[16][8]) {
  for (unsigned row = 0; row < 16; row++)
    for (unsigned k = 0; k < K; k++)
      for (unsigned n = 0; n < 8; n++) d[row][n] += a[row][k] * b[k][n];
}

template <class T>
void get_sums(const Slot* in, T (&d)[16][8]) {
  for (unsigned l = 0; l < LANES; l++)
    for (unsigned i = 0; i < 4; i++) memcpy(&d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2], &in[l].u32[8 + i], 4);
}
template <class T>
void put_sums(Slot* out, const T (&d)[16][8]) {
  for (unsigned l = 0; l < LANES; l++)
    for (unsigned i = 0; i < 4; i++) memcpy(&out[l].u32[i], &d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2], 4);
}

// Elements of 16 bits: two a register; a's registers are (row g, k 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8).
template <class Decode>
SIMT_QUIET void mma_16(const Slot* in, Slot* out, uint32_t mask, Decode decode) {
  whole_warp(mask, current->site);
  float a[16][16], b[16][8], d[16][8];
  for (unsigned l = 0; l < LANES; l++) {
    const unsigned g = l / 4, t = l % 4;
    for (unsigned i = 0; i < 8; i++) a[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = decode(in[l].u16[i]);
    for (unsigned i = 0; i < 4; i++) b[2 * t + i / 2 * 8 + i % 2][g] = decode(in[l].u16[8 + i]);
  }
  get_sums(in, d);
  multiply(a, b, d);
  put_sums(out, d);
}

// Elements of 8 bits: four a register, the same places with 4 t and 16.
template <class T, class Decode>
SIMT_QUIET void mma_8(const Slot* in, Slot* out, uint32_t mask, Decode decode) {
  whole_warp(mask, current->site);
  T a[16][32], b[32][8], d[16][8];
  for (unsigned l = 0; l < LANES; l++) {
    const unsigned g = l / 4, t = l % 4;
    for (unsigned i = 0; i < 16; i++) a[g + i / 4 % 2 * 8][4 * t + i / 8 * 16 + i % 4] = decode(in[l].u8[i]);
    for (unsigned i = 0; i < 8; i++) b[4 * t + i / 4 * 16 + i % 4][g] = decode(in[l].u8[16 + i]);
  }
  get_sums(in, d);
  multiply(a, b, d);
  put_sums(out, d);
}

float from_e4m3(uint8_t code) {
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return __builtin_nanf("");
  return sign * (exponent ? ldexpf(static_cast<float>(8 + mantissa), exponent - 10) : ldexpf(static_cast<float>(mantissa), -9));
}

struct E4m3 {
  float of[256];
  E4m3() {
    for (unsigned i = 0; i < 256; i++) of[i] = from_e4m3(static_cast<uint8_t>(i));
  }
};
const E4m3 E4M3;

}  // namespace

void mma_bf16_combine(const Slot* in, Slot* out, uint32_t mask) {
  mma_16(in, out, mask, [](uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); });
}
void mma_f16_combine(const Slot* in, Slot* out, uint32_t mask) {
  mma_16(in, out, mask, [](uint16_t x) { return static_cast<float>(std::bit_cast<simt_half>(x)); });
}
void mma_s8_combine(const Slot* in, Slot* out, uint32_t mask) {
  mma_8<int32_t>(in, out, mask, [](uint8_t x) { return static_cast<int32_t>(static_cast<int8_t>(x)); });
}
void mma_e4m3_combine(const Slot* in, Slot* out, uint32_t mask) {
  mma_8<float>(in, out, mask, [](uint8_t x) { return E4M3.of[x]; });
}

// ---- Numbers

namespace {

// `x` to the nearest multiple of 2^(exponent - digits), ties to even; as `fma`, but of any precision.
double fma_rounded(double a, double b, double c, int digits, int min_exponent) {
  // The product of two short numbers is exact; what the sum loses only matters as a direction: round it to odd.
  const double p = a * b;
  double sum = p + c;
  const double back = sum - p, lost = (p - (sum - back)) + (c - back);
  if (lost != 0 && !(std::bit_cast<uint64_t>(sum) & 1)) sum = std::nextafter(sum, lost > 0 ? INFINITY : -INFINITY);
  if (sum == 0 || !std::isfinite(sum)) return sum;
  const int exponent = std::max(std::ilogb(sum), min_exponent) - digits + 1;
  return std::ldexp(std::nearbyint(std::ldexp(sum, -exponent)), exponent);
}

float of_bf16(uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); }
float of_f16(uint16_t x) { return static_cast<float>(std::bit_cast<simt_half>(x)); }

}  // namespace

uint16_t fma_bf16(uint16_t a, uint16_t b, uint16_t c) {
  const float once = fmaf(of_bf16(a), of_bf16(b), of_bf16(c));
  // Rounding twice is wrong only where the first ended on a tie of the second.
  const bool tie = (__float_as_uint(once) & 0xffff) == 0x8000 || fabsf(once) < 1.2e-38f;
  return __float2bfloat16_rn(tie ? static_cast<float>(fma_rounded(of_bf16(a), of_bf16(b), of_bf16(c), 8, -126)) : once).bits;
}
uint16_t fma_f16(uint16_t a, uint16_t b, uint16_t c) {
  const float once = fmaf(of_f16(a), of_f16(b), of_f16(c));
  const bool tie = (__float_as_uint(once) & 0x1fff) == 0x1000 || fabsf(once) < 6.2e-5f;
  return __float2half_rn(tie ? static_cast<float>(fma_rounded(of_f16(a), of_f16(b), of_f16(c), 11, -14)) : once).bits;
}

uint8_t to_e4m3(float x) {
  if (x != x) return 0x7f;
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const float size = fminf(fabsf(x), 448.0f);
  const int exponent = size < 0.015625f ? -6 : std::ilogb(size);
  // In units of the last place, which may carry into the exponent.
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));
  return static_cast<uint8_t>(sign | (((exponent + 6) << 3) + units));
}

}  // namespace simt
