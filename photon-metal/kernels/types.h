// Element types and the few words every kernel uses.
//
// What is included is put in the place of its `#include` before Metal's compiler sees it: a library has no files. bfloat
// is there from Apple9 on (PHOTON_BFLOAT); elsewhere kernels of one type are not made for it, and those of any type take
// its bits apart.
#pragma once
#include <metal_stdlib>
using namespace metal;

// Functions that kernels call.
#define DEVICE inline

// Before loops with constant bounds over arrays that are to stay in registers.
#define UNROLL _Pragma("clang loop unroll(full)")

// bfloat16 as its bits, which are the upper half of a float.
DEVICE float bf16_to_float(ushort bits) { return as_type<float>((uint)bits << 16); }

// To nearest even; NaN stays NaN.
DEVICE ushort float_to_bf16(float x) {
  const uint bits = as_type<uint>(x);
  return (bits & 0x7fffffff) > 0x7f800000 ? (ushort)0x7fc0 : (ushort)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
