// Operations that move rows, and Fourier features. All are bound by bytes: every element is read once and written once.
#include "elements.cuh"

struct RowsArgs {
  void* out;               // [out_rows, columns], stride out_stride
  const void* x;           // [x_rows, columns], stride x_stride
  const int32_t* indices;  // [rows], or null: row `i` comes from row `i mod x_rows`
  uint32_t rows, columns;  // rows to move; columns are units where units are moved
  uint32_t out_rows, x_rows;
  uint32_t out_stride, x_stride;
  uint32_t out_type, x_type;
  uint32_t scatters;  // whether indices say where rows go, rather than where they come from
  uint32_t padding;
};

// Where row `i` comes from and goes to; false if nowhere.
DEVICE bool ends_of(const RowsArgs& a, uint32_t i, uint32_t& from, uint32_t& to) {
  from = to = i;
  if (a.indices == nullptr) {
    from = i % a.x_rows;
  } else if (a.scatters) {
    to = (uint32_t)a.indices[i];
  } else {
    from = (uint32_t)a.indices[i];
  }
  return from < a.x_rows && to < a.out_rows;
}

// Rows of one type, bit for bit, in units of 1, 2, 4 or 16 bytes.  grid = (rows, units / 128), block = 128.
template <class Unit> DEVICE void move_units(const RowsArgs& a) {
  enter();
  const uint32_t column = blockIdx.y * 128 + threadIdx.x;
  uint32_t from, to;
  if (column >= a.columns || !ends_of(a, blockIdx.x, from, to)) return;
  ((Unit*)a.out)[(size_t)to * a.out_stride + column] = ((const Unit*)a.x)[(size_t)from * a.x_stride + column];
}

extern "C" __global__ void __launch_bounds__(128) move_rows_1(const RowsArgs a) { move_units<uint8_t>(a); }
extern "C" __global__ void __launch_bounds__(128) move_rows_2(const RowsArgs a) { move_units<uint16_t>(a); }
extern "C" __global__ void __launch_bounds__(128) move_rows_4(const RowsArgs a) { move_units<uint32_t>(a); }
extern "C" __global__ void __launch_bounds__(128) move_rows_16(const RowsArgs a) { move_units<uint4>(a); }

// Rows of floats of another type.  grid = (rows, columns / 128), block = 128.
extern "C" __global__ void __launch_bounds__(128) convert_rows(const RowsArgs a) {
  enter();
  const uint32_t column = blockIdx.y * 128 + threadIdx.x;
  uint32_t from, to;
  if (column >= a.columns || !ends_of(a, blockIdx.x, from, to)) return;
  const float x = load(a.x, (size_t)from * a.x_stride + column, a.x_type);
  store(a.out, (size_t)to * a.out_stride + column, a.out_type, x);
}

struct FourierArgs {
  void* out;            // [rows, 2 features], stride out_stride
  const float* values;  // [rows, dims], contiguous
  const float* w;       // [dims, features], contiguous
  uint32_t rows, dims, features;
  uint32_t out_stride, out_type;
  uint32_t padding;
};

// A thread has one feature of a row.  grid = (rows, features / 128), block = 128.
extern "C" __global__ void __launch_bounds__(128) fourier(const FourierArgs a) {
  enter();
  const uint32_t row = blockIdx.x, feature = blockIdx.y * 128 + threadIdx.x;
  if (feature >= a.features) return;
  float turns = 0.0f;
  for (uint32_t d = 0; d < a.dims; d++) turns += a.values[(size_t)row * a.dims + d] * a.w[(size_t)d * a.features + feature];
  // Whole turns come off exactly, which leaves an angle that sine and cosine need not reduce.
  const float angle = 6.2831853072f * (turns - rintf(turns));
  const size_t at = (size_t)row * a.out_stride + feature;
  store(a.out, at, a.out_type, cosf(angle));
  store(a.out, at + a.features, a.out_type, sinf(angle));
}
