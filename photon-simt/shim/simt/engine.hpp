// What kernels, compiled as host C++, need of the engine: who they are, where they meet, how they fail.
//
// A thread of the GPU is a fiber; 32 make a warp; a block's warps run on one thread of the system, one lane at a time, each
// until it has to wait for others. Nothing here allocates in a kernel, and nothing unwinds: a fiber that fails is left.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// Or given on the command line, to the engine itself, whose accesses no detector is to see.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#undef SIMT_TSAN
#define SIMT_TSAN 1
#endif
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define SIMT_TSAN 1
#endif

// The race detector is to see the kernel's accesses and not the engine's own, which one thread of the system makes in turn.
#if SIMT_TSAN
#define SIMT_QUIET __attribute__((no_sanitize("thread"), noinline))
#define SIMT_LANE __attribute__((no_sanitize("thread"), noinline)) inline
#else
#define SIMT_QUIET
#define SIMT_LANE __attribute__((always_inline)) inline
#endif

namespace simt {

constexpr unsigned LANES = 32;

struct Dim3 {
  uint32_t x, y, z;
};

// A place in a kernel's source, and what is done there.
struct Site {
  const char* what;
  const char* file;
  uint32_t line;
};

// What one lane gives to the others of its warp, or gets.
struct alignas(64) Slot {
  union {
    uint64_t u64[8];
    uint32_t u32[16];
    int32_t i32[16];
    float f32[16];
    uint16_t u16[32];
    uint8_t u8[64];
    const void* pointer[8];
  };
};

// Turns what the lanes of `mask` gave into what each gets. Of the others `in` is stale.
using Combine = void (*)(const Slot* in, Slot* out, uint32_t mask);

struct Warp;
struct Block;
struct Copies;

struct Lane {
  void* sp;
  Dim3 index;
  uint32_t thread;  // In its block.
  uint32_t number;  // In its warp.
  Slot* give;  // What the others of its warp see when they meet, and what it gets then.
  Slot* got;
  Warp* warp;
  Block* block;
  Copies* copies;
  Site site;  // Where it waits.
  bool finished;
  bool has_waited;  // For the launches before.
  char* stack;
  void* sanitizer;
};

struct Shape {
  Dim3 grid, block;
};

// The lane that runs on this thread of the system.
extern constinit thread_local Lane* current;

Dim3 block_index();
const Shape& shape();
// The launch's argument, as its kernel was given it.
const void* arguments();

// Waits until all lanes of `mask` that have not returned are here, then makes of what they gave what each gets.
void meet(uint32_t mask, Site site, Combine combine);
// `__syncwarp`: the same without data, ordering memory.
void meet_in_order(uint32_t mask, Site site);

enum class Reduce { None, Count, And, Or };
// Barrier `id`; `threads` 0 means all of the block that have not returned, who must all come to the same place.
uint32_t barrier(uint32_t id, uint32_t threads, Site site, Reduce reduce = Reduce::None, bool value = false);
void arrive(uint32_t id, uint32_t threads, Site site);
// All threads of a cooperative launch.
void grid_barrier(Site site);

// A thread that waits for what another writes lets others run; `often` for plain polls, else once in a while.
void relax(Site site, bool often);

// Shared memory: one region a declaration and block, ending at a page that cannot be touched.
uint32_t new_shared(const char* name);
void* shared(uint32_t id, size_t bytes, size_t align);
void* dynamic_shared();
bool is_shared(const void* p);

template <class Tag, size_t ALIGN, class T>
inline T& shared(const char* name) {
  static const uint32_t id = new_shared(name);
  constexpr size_t align = ALIGN > alignof(T) ? ALIGN : alignof(T);
  return *static_cast<T*>(shared(id, sizeof(T), align));
}

// Ends the launch with a message that names kernel, block and thread.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(Site site, const char* format, ...);

// Copies that run on while the thread computes: they land now, or when waited for, as the seed says.
void copy_async(void* to, const void* from, uint32_t bytes, uint32_t valid, Site site);
void land(void* to, const void* from, uint32_t bytes, uint32_t valid);
void copy_async_commit();
void copy_async_wait(uint32_t groups);

// What a generated table says of a kernel.
struct Field {
  const char* name;
  const char* type;
  uint32_t offset, size;
};
struct Kernel {
  const char* name;
  const char* file;
  uint32_t line;
  // The one struct that it takes, if it takes one.
  const char* args;
  uint32_t args_size;
  uint32_t num_fields;
  const Field* fields;
  // What else is bound to names of it: Metal's alone, with indices as offsets and `msl::Source` as sizes.
  uint32_t num_parameters;
  const Field* parameters;
  uint32_t launch_bounds;  // 0: none given.
  void (*run)(const void* args);
};
struct Table {
  const Kernel* kernels;
  size_t count;
};

}  // namespace simt

// Default arguments of everything that can fail or wait: the place of the call.
#define SIMT_PLACE const char *simt_file = __builtin_FILE(), uint32_t simt_line = __builtin_LINE()
#define SIMT_SITE(what) (::simt::Site{what, simt_file, simt_line})
