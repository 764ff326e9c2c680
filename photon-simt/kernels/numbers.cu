// Conversions and arithmetic of element types over all inputs: compared with definitions by the tests.
#include "ptx.cuh"

struct NumbersArgs {
  const uint32_t* in;
  uint32_t* out;  // [results, n]
  int32_t n, pad;
};

extern "C" __global__ void __launch_bounds__(256) numbers(const NumbersArgs a) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.n) return;
  const uint32_t x = a.in[i];
  const float f = __uint_as_float(x);
  uint32_t* out = a.out + i;
  out[0 * a.n] = __float2bfloat16_rn(f).bits;
  out[1 * a.n] = __float2half_rn(f).bits;
  out[2 * a.n] = pack_e4m3(f, 0.0f, 1.0f, 2.0f);
  f16 h;
  h.bits = static_cast<uint16_t>(x);
  out[3 * a.n] = __float_as_uint(__half2float(h));
  out[4 * a.n] = pack_bf16(f, 1.0f);
  out[5 * a.n] = pack_f16(-1.0f, f);
  const uint32_t y = a.in[(i + 1) % a.n], z = a.in[(i + 2) % a.n];
  out[6 * a.n] = fma_bf16x2(x, y, z);
  out[7 * a.n] = fma_f16x2(x, y, z);
  out[8 * a.n] = __byte_perm(x, y, z & 0x7777);
  out[9 * a.n] = static_cast<uint32_t>(__float2int_rn(f));
  out[10 * a.n] = static_cast<uint32_t>(__dp4a(static_cast<int>(x), static_cast<int>(y), static_cast<int>(z)));
  out[11 * a.n] = __funnelshift_r(x, y, z) ^ __brev(z) ^ static_cast<uint32_t>(__clz(x)) ^ __umulhi(x, y);
}
