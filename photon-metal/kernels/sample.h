// What the sampler counts with: floats as integers, sums of 64 bits, and random words.
#pragma once
#include "elements.h"

// A product and a sum are fused where `fma` is written and nowhere else.
#pragma STDC FP_CONTRACT OFF

// Of no number, and of minus infinity the bits.
constant constexpr uint NAN_KEY = 0xffffffff, MINUS_INFINITY = 0xff800000;

// An integer that orders as the float does, minus zero below zero.
DEVICE uint key_of(float v) {
  const uint bits = as_type<uint>(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE float value_of(uint key) { return as_type<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// Whether these are equal as floats, of which neither is NaN.
DEVICE bool is_equal(float a, float b) {
  const uint x = as_type<uint>(a), y = as_type<uint>(b);
  return x == y || ((x | y) & 0x7fffffffu) == 0;
}

// A logit; of bfloat16, which not every GPU has, the bits.
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(half x) { return x; }
DEVICE float to_float(ushort bits) { return bf16_to_float(bits); }

// Of all lanes, in all lanes; each has less than 2^43.
DEVICE ulong simd_sum_long(ulong x) {
  const uint low = simd_sum(uint(x) & 0xffffffu);
  return ulong(low) + (ulong(simd_sum(uint(x >> 24))) << 24);
}

// Of the lanes up to this one; the whole is below 2^48.
DEVICE ulong simd_running_sum_long(ulong x) {
  const uint low = simd_prefix_inclusive_sum(uint(x) & 0xffffffu);
  return ulong(low) + (ulong(simd_prefix_inclusive_sum(uint(x >> 24))) << 24);
}

// The upper half of a product.
DEVICE ulong upper_product(ulong a, ulong b) {
  const uint a0 = uint(a), a1 = uint(a >> 32), b0 = uint(b), b1 = uint(b >> 32);
  const ulong middle = ulong(a1) * b0 + mulhi(a0, b0);
  const ulong other = ulong(a0) * b1 + uint(middle);
  return ulong(a1) * b1 + (middle >> 32) + (other >> 32);
}

// The first two words of a block of Philox4x32-10.
DEVICE ulong philox(uint k0, uint k1, uint position, uint stream) {
  uint c0 = position, c1 = stream, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; round++) {
    const uint high0 = mulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint high1 = mulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return ulong(c0) | ulong(c1) << 32;
}
