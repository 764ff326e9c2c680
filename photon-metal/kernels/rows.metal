// Operations that move rows, and Fourier features. All are bound by bytes: every element is read once and written once.
#include "elements.h"

struct RowsArgs {
  device void* out;           // [out_rows, columns], stride out_stride
  device const void* x;       // [x_rows, columns], stride x_stride
  device const int* indices;  // [rows], or null: row `i` comes from row `i mod x_rows`
  uint rows, columns;         // rows to move; columns are units where units are moved
  uint out_rows, x_rows;
  uint out_stride, x_stride;
  uint out_type, x_type;
  uint scatters;  // whether indices say where rows go, rather than where they come from
  uint padding;
};

// Where row `i` comes from and goes to; false if nowhere.
DEVICE bool ends_of(constant RowsArgs& a, uint i, thread uint& from, thread uint& to) {
  from = to = i;
  if (a.indices == nullptr) {
    from = i % a.x_rows;
  } else if (a.scatters) {
    to = (uint)a.indices[i];
  } else {
    from = (uint)a.indices[i];
  }
  return from < a.x_rows && to < a.out_rows;
}

// Rows of one type, bit for bit, in units of 1, 2, 4 or 16 bytes.  threadgroups = (rows, units / 128), threads = 128.
template <typename Unit>
[[kernel, max_total_threads_per_threadgroup(128)]] void move_rows(
    constant RowsArgs& a [[buffer(0)]],
    uint3 at [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]]) {
  const uint column = at.y * 128 + index;
  uint from, to;
  if (column >= a.columns || !ends_of(a, at.x, from, to)) return;
  device const Unit* x = (device const Unit*)a.x;
  ((device Unit*)a.out)[(size_t)to * a.out_stride + column] = x[(size_t)from * a.x_stride + column];
}

template [[host_name("move_rows_1")]] [[kernel]] decltype(move_rows<uchar>) move_rows<uchar>;
template [[host_name("move_rows_2")]] [[kernel]] decltype(move_rows<ushort>) move_rows<ushort>;
template [[host_name("move_rows_4")]] [[kernel]] decltype(move_rows<uint>) move_rows<uint>;
template [[host_name("move_rows_16")]] [[kernel]] decltype(move_rows<uint4>) move_rows<uint4>;

// Rows of floats of another type.  threadgroups = (rows, columns / 128), threads = 128.
[[kernel, max_total_threads_per_threadgroup(128)]] void convert_rows(
    constant RowsArgs& a [[buffer(0)]],
    uint3 at [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]]) {
  const uint column = at.y * 128 + index;
  uint from, to;
  if (column >= a.columns || !ends_of(a, at.x, from, to)) return;
  const float x = load(a.x, (size_t)from * a.x_stride + column, a.x_type);
  store(a.out, (size_t)to * a.out_stride + column, a.out_type, x);
}

struct FourierArgs {
  device void* out;            // [rows, 2 features], stride out_stride
  device const float* values;  // [rows, dims], contiguous
  device const float* w;       // [dims, features], contiguous
  uint rows, dims, features;
  uint out_stride, out_type;
  uint padding;
};

// A thread has one feature of a row.  threadgroups = (rows, features / 128), threads = 128.
[[kernel, max_total_threads_per_threadgroup(128)]] void fourier(
    constant FourierArgs& a [[buffer(0)]],
    uint3 at [[threadgroup_position_in_grid]],
    uint index [[thread_index_in_threadgroup]]) {
  const uint row = at.x, feature = at.y * 128 + index;
  if (feature >= a.features) return;
  float turns = 0.0f;
  for (uint d = 0; d < a.dims; d++) turns += a.values[(size_t)row * a.dims + d] * a.w[(size_t)d * a.features + feature];
  // Whole turns come off exactly, which leaves an angle that sine and cosine need not reduce.
  const float angle = 6.2831853072f * (turns - rint(turns));
  const size_t place = (size_t)row * a.out_stride + feature;
  store(a.out, place, a.out_type, cos(angle));
  store(a.out, place + a.features, a.out_type, sin(angle));
}
