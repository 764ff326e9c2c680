// The engine: fibers, the order they run in, where they meet, and what is said when something goes wrong.
//
// Order. A lane runs until it must wait; then another lane of its warp; when none can, another warp of the block. So a warp
// runs as far ahead of the others as barriers let it, a lane as far ahead of its warp: what a missing barrier leaves open
// is done in the worst order for one seed or another. Nothing runs in step by accident.
//
// A fault leaves the fibers where they are: kernels own nothing that needs a destructor.
#include "engine.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if SIMT_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif

// simt_switch(save, load): keeps what a call must keep on this stack, notes the stack's end in *save, goes on with `load`.
// simt_load is its second half, for who has nothing to keep. Both jump rather than return: the lanes of a warp mostly
// continue at one place, which predicts well, while returns of another stack never do.
#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
.globl simt_load
.type simt_load,@function
simt_load:
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size simt_switch,.-simt_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch,%function
simt_switch:
  sub sp,sp,#160
  stp x19,x20,[sp,#0]
  stp x21,x22,[sp,#16]
  stp x23,x24,[sp,#32]
  stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]
  stp d10,d11,[sp,#112]
  stp d12,d13,[sp,#128]
  stp d14,d15,[sp,#144]
  mov x9,sp
  str x9,[x0]
.globl simt_load
.type simt_load,%function
simt_load:
  mov sp,x1
  ldp x19,x20,[sp,#0]
  ldp x21,x22,[sp,#16]
  ldp x23,x24,[sp,#32]
  ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]
  ldp d10,d11,[sp,#112]
  ldp d12,d13,[sp,#128]
  ldp d14,d15,[sp,#144]
  add sp,sp,#160
  br x30
.size simt_switch,.-simt_switch
)");
#else
#error "the simulator switches stacks on x86-64 and aarch64 only"
#endif
extern "C" void simt_switch(void** save, void* load);
extern "C" void simt_load(void*, void* load);

namespace simt {

constinit thread_local Lane* current = nullptr;

namespace {

constexpr uint32_t MAX_WARPS = 32;
constexpr uint32_t MAX_MEETINGS = 8;
constexpr uint32_t NUM_BARRIERS = 16;
constexpr size_t MAX_DYNAMIC = 256 << 10;
constexpr size_t STATIC_LIMIT = 48 << 10;
#if SIMT_ASAN || SIMT_TSAN
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif
// So many polls of one worker without anything else happening are a livelock.
constexpr uint64_t MAX_POLLS = 1 << 22;

size_t page() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}
size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

// Lanes that have come together, or are about to.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  Combine combine = nullptr;
  Site site{};
};

struct Barrier {
  uint32_t arrived = 0, expected = 0;
  uint32_t holds = 0, result = 0;
  Site site{};
  uint32_t waiting[MAX_WARPS] = {};
};

}  // namespace

struct Warp {
  uint32_t ready = 0, live = 0;
  uint32_t number = 0, num_meetings = 0;
  Lane* lanes = nullptr;
  Meeting meetings[MAX_MEETINGS];
  Slot in[LANES], out[LANES];
};

struct Region {
  uint8_t* data = nullptr;
  size_t bytes = 0;
  bool used = false;  // By the block that runs.
};

struct Block {
  Dim3 index{};
  uint32_t live = 0, num_warps = 0;
  Warp* warps = nullptr;
  Barrier barriers[NUM_BARRIERS];
  std::vector<Region> regions;  // By declaration.
  uint8_t* dynamic_end = nullptr;
  uint8_t* dynamic = nullptr;
  size_t static_bytes = 0;
};

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes, valid;
};
struct Copies {
  std::vector<Copy> queue;
  size_t done = 0;
  std::vector<size_t> groups;  // Ends in `queue` of the groups under way.
};

// Of one launch, shared by the workers; as `cuda::Launch` in Rust.
struct Launch {
  const Kernel* kernel;
  const void* args;
  Shape shape;
  uint32_t dynamic_bytes, shared_limit;
  uint64_t seed;
  uint32_t cooperative, starts_early;
  std::atomic<uint32_t> next;
  std::atomic<uint32_t> failed;
};

// What one worker saw; as `cuda::Report` in Rust.
struct Report {
  uint32_t kind;  // 0 nothing, 1 the message says it, 2 a trap.
  uint32_t signal, is_write, has_thread;
  uint32_t block[3], thread[3];
  uint64_t ip, address;
  uint64_t switches;
  uint64_t static_shared;
  const char* shared_name;
  int64_t shared_past;
  char message[4096];
};

namespace {

struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
};

std::mutex shared_names_lock;
std::vector<const char*> shared_names;

}  // namespace

// Blocks that run together on one thread of the system, and all they need; kept for later launches.
struct Worker {
  void* main_sp = nullptr;
  void* main_sanitizer = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  Launch* launch = nullptr;
  Report* report = nullptr;
  Random random{0};
  bool backward = false, shuffled = false, mixed = false, eager = false;
  uint8_t poison = 0xff;
  uint64_t switches = 0, polls = 0;
  uint32_t live = 0;  // Threads of all blocks here.
  uint32_t atomics = 0;
  Barrier grid;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Lane> lanes;
  std::vector<Copies> copies;
  std::vector<char*> stacks;

  void prepare(uint32_t num_blocks, uint32_t threads);
  void begin(Block& block, Dim3 index);
  void run();
  Lane* pick();
  Lane* pick_in(Warp& warp, uint32_t after) const;
  Lane* other_warp();
  Lane* first_from(uint32_t at);
};

namespace {

thread_local Worker* here = nullptr;
std::mutex pool_lock;
std::vector<Worker*> pool;

char* new_stack() {
  const size_t bytes = page() + STACK;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p, page(), PROT_NONE) != 0) {
    std::perror("photon-simt: no memory for the stacks of simulated threads");
    std::abort();
  }
  return static_cast<char*>(p) + page();
}

// The addresses of all shared memory of all workers: 64 GiB of them, of which what is used is backed by memory.
constexpr size_t SHARED_RANGE = size_t{64} << 30;
uint8_t* shared_range() {
  static uint8_t* const range = [] {
    void* p = mmap(nullptr, SHARED_RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<uint8_t*>(p);
  }();
  return range;
}

// Pages that end at one that cannot be touched; gives the end.
uint8_t* guarded(size_t bytes) {
  static std::atomic<size_t> used{0};
  const size_t size = round_up(bytes, page());
  const size_t at = used.fetch_add(size + page());
  uint8_t* begin = shared_range() + page() + at;
  if (!shared_range() || at + size + 2 * page() > SHARED_RANGE || mprotect(begin, size, PROT_READ | PROT_WRITE) != 0) {
    std::perror("photon-simt: no memory for shared memory");
    std::abort();
  }
  return begin + size;
}

void poison_bytes(uint8_t* at, size_t bytes, uint8_t with) {
#if SIMT_TSAN
  // Its memset would count as a write of the lane that came first.
  for (volatile uint8_t* p = at; p < at + bytes; p++) *p = with;
#else
  memset(at, with, bytes);
#endif
}

SIMT_QUIET void before_switch(void** fake, Lane* to, Worker& w) {
#if SIMT_TSAN
  __tsan_switch_to_fiber(to ? to->sanitizer : w.main_sanitizer, 1);
#endif
#if SIMT_ASAN
  if (to) __sanitizer_start_switch_fiber(fake, to->stack, STACK);
  else __sanitizer_start_switch_fiber(fake, w.main_stack, w.main_stack_bytes);
#endif
  (void)fake, (void)to, (void)w;
}
SIMT_QUIET void after_switch(void* fake) {
#if SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  (void)fake;
}

// Runs `to`, or the worker's own stack where nobody can run, and comes back when somebody picks this lane again.
SIMT_QUIET void go(Worker& w, Lane* from, Lane* to) {
  void* fake = nullptr;
  w.switches++;
  before_switch(from->finished ? nullptr : &fake, to, w);
  current = to;
  simt_switch(&from->sp, to ? to->sp : w.main_sp);
  after_switch(fake);
}

// The lane that runs cannot go on; its bit in `ready` is already gone.
SIMT_QUIET void wait_for_others() {
  Worker& w = *here;
  Lane* from = current;
  go(w, from, w.pick());
}

void say(Report& r, const char* format, ...) __attribute__((format(printf, 2, 3)));
void say(Report& r, const char* format, ...) {
  const size_t used = strlen(r.message);
  va_list args;
  va_start(args, format);
  vsnprintf(r.message + used, sizeof r.message - used, format, args);
  va_end(args);
}

SIMT_LANE bool same_place(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0) && (a.what == b.what || strcmp(a.what, b.what) == 0);
}

// Who waits where, one line a place: "threads 0-31 40 wait at __syncthreads (file:12)".
void say_who_waits(Report& r, const Worker& w) {
  std::vector<const Lane*> rest;
  for (const Lane& lane : w.lanes)
    if (!lane.finished && lane.site.what) rest.push_back(&lane);
  while (!rest.empty()) {
    const Site site = rest[0]->site;
    const Block* block = rest[0]->block;
    std::vector<const Lane*> here, others;
    for (const Lane* lane : rest) (lane->block == block && same_place(lane->site, site) ? here : others).push_back(lane);
    say(r, "\n  ");
    if (w.blocks.size() > 1) say(r, "block (%u, %u, %u) ", block->index.x, block->index.y, block->index.z);
    say(r, "threads");
    for (size_t i = 0, j; i < here.size(); i = j) {
      for (j = i + 1; j < here.size() && here[j]->thread == here[j - 1]->thread + 1;) j++;
      say(r, j - i == 1 ? " %u" : " %u-%u", here[i]->thread, here[j - 1]->thread);
    }
    say(r, " wait at %s (%s:%u)", site.what, site.file, site.line);
    rest = others;
  }
}

void begin_report(Worker& w, uint32_t kind, const Lane* lane) {
  Report& r = *w.report;
  r.kind = kind;
  r.message[0] = 0;
  if (lane) {
    r.has_thread = 1;
    r.block[0] = lane->block->index.x, r.block[1] = lane->block->index.y, r.block[2] = lane->block->index.z;
    r.thread[0] = lane->index.x, r.thread[1] = lane->index.y, r.thread[2] = lane->index.z;
  }
}

[[noreturn]] SIMT_QUIET void leave_for_good(Worker& w) {
  void* fake = nullptr;
  before_switch(&fake, nullptr, w);
  current = nullptr;
  simt_load(nullptr, w.main_sp);
  __builtin_unreachable();
}

}  // namespace

void fail(Site site, const char* format, ...) {
  Worker& w = *here;
  begin_report(w, 1, current);
  Report& r = *w.report;
  va_list args;
  va_start(args, format);
  vsnprintf(r.message, sizeof r.message, format, args);
  va_end(args);
  if (site.file) say(r, " at %s (%s:%u)", site.what, site.file, site.line);
  leave_for_good(w);
}

Dim3 block_index() { return current->block->index; }
const Shape& shape() { return here->launch->shape; }
const void* arguments() { return here->launch->args; }

// ---- Order

SIMT_QUIET Lane* Worker::pick_in(Warp& warp, uint32_t after) const {
  const uint32_t ready = warp.ready;
  if (backward) {
    const uint32_t turned = ready << ((32 - after) & 31) | ready >> (after & 31);
    return &warp.lanes[(after - 1 - static_cast<uint32_t>(__builtin_clz(turned))) & 31];
  }
  const uint32_t first = (after + 1) & 31;
  const uint32_t turned = ready >> first | ready << ((32 - first) & 31);
  return &warp.lanes[(first + static_cast<uint32_t>(__builtin_ctz(turned))) & 31];
}

SIMT_QUIET Lane* Worker::other_warp() {
  const uint32_t count = static_cast<uint32_t>(warps.size());
  return first_from(shuffled ? static_cast<uint32_t>(random.next() % count) : backward ? count - 1 : 0);
}

// Of the first warp from `at` on that has a lane to run.
SIMT_QUIET Lane* Worker::first_from(uint32_t at) {
  const uint32_t count = static_cast<uint32_t>(warps.size());
  for (uint32_t i = 0; i < count; i++) {
    Warp& warp = warps[at];
    if (warp.ready) return pick_in(warp, shuffled ? static_cast<uint32_t>(random.next() % LANES) : backward ? 0 : 31);
    at = backward ? (at ? at - 1 : count - 1) : (at + 1 == count ? 0 : at + 1);
  }
  return nullptr;
}

SIMT_QUIET Lane* Worker::pick() {
  Warp& warp = *current->warp;
  return warp.ready ? pick_in(warp, current->number) : other_warp();
}

void relax(Site site, bool often) {
  Worker& w = *here;
  if (!often && ++w.atomics % 1024 != 0) return;
  if (++w.polls > MAX_POLLS) fail(site, "waits for something that no running thread will do: %llu polls", (unsigned long long)MAX_POLLS);
  // Warps in turn, so that whoever is waited for gets to run.
  Lane* from = current;
  from->site = site;
  const uint32_t count = static_cast<uint32_t>(w.warps.size());
  const uint32_t own = static_cast<uint32_t>(from->warp - w.warps.data());
  Lane* to = w.first_from((own + (w.backward ? count - 1 : 1)) % count);
  if (to->warp == from->warp) to = w.pick_in(*from->warp, from->number);
  if (to != from) go(w, from, to);
}

// ---- Meeting

namespace {

SIMT_QUIET void close_meeting(Warp& warp, uint32_t i) {
  Meeting& m = warp.meetings[i];
  current->site = m.site;
  if (m.combine) m.combine(warp.in, warp.out, m.arrived);
  warp.ready |= m.arrived;
  here->polls = 0;
  m = warp.meetings[--warp.num_meetings];
}

// The lane joins the meeting of its mask; true if it was the last.
SIMT_QUIET bool join(uint32_t mask, const Site& site, Combine combine) {
  Lane& lane = *current;
  Warp& warp = *lane.warp;
  const uint32_t bit = 1u << lane.number;
  if (!(mask & bit)) fail(site, "a lane that is not in its own mask %08x", mask);
  uint32_t i = 0;
  while (i < warp.num_meetings && warp.meetings[i].mask != mask) i++;
  if (i == warp.num_meetings) {
    if (i == MAX_MEETINGS) fail(site, "more than %u meetings of lanes of one warp at once", MAX_MEETINGS);
    warp.num_meetings++;
    warp.meetings[i] = {mask, 0, combine, site};
  }
  Meeting& m = warp.meetings[i];
  if (m.combine != combine || m.site.line != site.line || !same_place(m.site, site)) {
    lane.site = site;
    Report& r = *here->report;
    begin_report(*here, 1, &lane);
    say(r, "lanes of one warp came to different places at once");
    say_who_waits(r, *here);
    leave_for_good(*here);
  }
  m.arrived |= bit;
  lane.site = site;
  warp.ready &= ~bit;
  if (m.arrived != (mask & warp.live)) return false;
  close_meeting(warp, i);
  return true;
}

}  // namespace

SIMT_QUIET void meet(uint32_t mask, Site site, Combine combine) {
  if (!join(mask, site, combine)) wait_for_others();
}

SIMT_QUIET void meet_in_order(uint32_t mask, Site site) {
#if SIMT_TSAN
  __tsan_release(current->warp);
#endif
  if (!join(mask, site, nullptr)) wait_for_others();
#if SIMT_TSAN
  __tsan_acquire(current->warp);
#endif
}

// ---- Barriers

namespace {

SIMT_QUIET void open_barrier(Block& block, Barrier& b) {
  b.result = b.holds;
  b.arrived = b.holds = b.expected = 0;
  for (uint32_t i = 0; i < block.num_warps; i++) {
    block.warps[i].ready |= b.waiting[i];
    b.waiting[i] = 0;
  }
  here->polls = 0;
}

// Counts the thread in; true if it was the last.
SIMT_QUIET bool enter_barrier(Block& block, Barrier& b, uint32_t threads, const Site& site) {
  if (b.arrived == 0) {
    b.site = site;
    b.expected = threads;
  } else if (threads == 0 && !same_place(b.site, site)) {
    current->site = site;
    Report& r = *here->report;
    begin_report(*here, 1, current);
    say(r, "threads of one block came to different barriers");
    say_who_waits(r, *here);
    leave_for_good(*here);
  } else if (b.expected != threads) {
    fail(site, "a barrier of %u threads, which %s:%u says is of %u,", threads, b.site.file, b.site.line, b.expected);
  }
  return ++b.arrived == (threads ? threads : block.live);
}

}  // namespace

SIMT_QUIET uint32_t barrier(uint32_t id, uint32_t threads, Site site, Reduce reduce, bool value) {
  Lane& lane = *current;
  Block& block = *lane.block;
  if (id >= NUM_BARRIERS || threads % LANES != 0) fail(site, "barrier %u of %u threads: 16 barriers of whole warps,", id, threads);
  Barrier& b = block.barriers[id];
#if SIMT_TSAN
  __tsan_release(&b);
#endif
  const bool last = enter_barrier(block, b, threads, site);
  b.holds += value;
  lane.site = site;
  const uint32_t bit = 1u << lane.number;
  lane.warp->ready &= ~bit;
  b.waiting[lane.warp->number] |= bit;
  const uint32_t all = block.live;
  if (last) open_barrier(block, b);
  else wait_for_others();
#if SIMT_TSAN
  __tsan_acquire(&b);
#endif
  switch (reduce) {
    case Reduce::And: return b.result == all;
    case Reduce::Or: return b.result != 0;
    default: return b.result;
  }
}

SIMT_QUIET void arrive(uint32_t id, uint32_t threads, Site site) {
  Block& block = *current->block;
  if (id >= NUM_BARRIERS || threads % LANES != 0) fail(site, "barrier %u of %u threads: 16 barriers of whole warps,", id, threads);
  Barrier& b = block.barriers[id];
#if SIMT_TSAN
  __tsan_release(&b);
#endif
  if (enter_barrier(block, b, threads, site)) open_barrier(block, b);
}

SIMT_QUIET void grid_barrier(Site site) {
  Worker& w = *here;
  if (!w.launch->cooperative) fail(site, "a barrier of the whole grid in a launch that is not cooperative");
#if SIMT_TSAN
  __tsan_release(&w.grid);
#endif
  Lane& lane = *current;
  lane.site = site;
  lane.warp->ready &= ~(1u << lane.number);
  if (++w.grid.arrived == w.live) {
    w.grid.arrived = 0;
    for (Lane& other : w.lanes)
      if (!other.finished) other.warp->ready |= 1u << other.number;
  } else {
    wait_for_others();
  }
#if SIMT_TSAN
  __tsan_acquire(&w.grid);
#endif
}

// ---- Shared memory

uint32_t new_shared(const char* name) {
  std::lock_guard<std::mutex> lock(shared_names_lock);
  shared_names.push_back(name);
  return static_cast<uint32_t>(shared_names.size() - 1);
}

SIMT_QUIET void* shared(uint32_t id, size_t bytes, size_t align) {
  Block& block = *current->block;
  if (id < block.regions.size() && block.regions[id].used) return block.regions[id].data;
  if (id >= block.regions.size()) block.regions.resize(id + 1);
  Region& region = block.regions[id];
  if (!region.data) {
    if (align > page()) fail({}, "shared memory aligned to %zu bytes", align);
    region.data = guarded(round_up(bytes, align)) - round_up(bytes, align);
    region.bytes = bytes;
  }
  region.used = true;
  block.static_bytes = round_up(block.static_bytes, align) + bytes;
  Worker& w = *here;
  if (block.static_bytes > STATIC_LIMIT)
    fail({}, "%zu bytes of `__shared__` arrays, of which there may be %zu: take dynamic shared memory", block.static_bytes, STATIC_LIMIT);
  if (block.static_bytes + w.launch->dynamic_bytes > w.launch->shared_limit)
    fail({}, "%zu bytes of `__shared__` arrays and %u of dynamic shared memory, where a block can have %u", block.static_bytes,
         w.launch->dynamic_bytes, w.launch->shared_limit);
  poison_bytes(region.data, region.bytes, w.poison);
  return region.data;
}

bool is_shared(const void* p) { return static_cast<size_t>(static_cast<const uint8_t*>(p) - shared_range()) < SHARED_RANGE; }

void* dynamic_shared() {
  if (here->launch->dynamic_bytes == 0) fail({}, "dynamic shared memory is used and the launch gives none");
  return current->block->dynamic;
}

// ---- Copies in the background

namespace {

SIMT_QUIET bool next_copy(Copies& c, size_t end, Copy& copy) {
  if (c.done == end) return false;
  copy = c.queue[c.done++];
  return true;
}

SIMT_QUIET bool lands_now() {
  Worker& w = *here;
  return w.mixed ? w.random.next() >> 63 : w.eager;
}

SIMT_QUIET void keep_copy(const Copy& copy) { current->copies->queue.push_back(copy); }

SIMT_QUIET size_t groups_end(uint32_t keep) {
  Copies& c = *current->copies;
  if (c.groups.size() <= keep) return c.done;
  const size_t past = c.groups.size() - keep;
  const size_t end = c.groups[past - 1];
  c.groups.erase(c.groups.begin(), c.groups.begin() + static_cast<ptrdiff_t>(past));
  return end;
}

}  // namespace

void copy_async(void* to, const void* from, uint32_t bytes, uint32_t valid, Site site) {
  if (!is_shared(to) || (valid && is_shared(from))) fail(site, "not a copy from global memory to shared memory");
  if (reinterpret_cast<uintptr_t>(to) % bytes || (valid && reinterpret_cast<uintptr_t>(from) % bytes))
    fail(site, "addresses %p and %p are not both multiples of %u", to, from, bytes);
  if (lands_now()) land(to, from, bytes, valid);
  else keep_copy({to, from, bytes, valid});
}

SIMT_QUIET void copy_async_commit() {
  Copies& c = *current->copies;
  c.groups.push_back(c.queue.size());
}

void copy_async_wait(uint32_t groups) {
  const size_t end = groups_end(groups);
  Copy copy{};
  while (next_copy(*current->copies, end, copy)) land(copy.to, copy.from, copy.bytes, copy.valid);
  Copies& c = *current->copies;
  if (c.done == c.queue.size() && c.groups.empty()) c.queue.clear(), c.done = 0;
}

// ---- Running

namespace {

SIMT_QUIET void finish_lane() {
  Worker& w = *here;
  Lane& lane = *current;
  Warp& warp = *lane.warp;
  Block& block = *lane.block;
  if (w.launch->starts_early && !lane.has_waited)
    fail({}, "returned without `grid_wait`: the kernel before it may still be running, whose memory this one uses");
  lane.finished = true;
  warp.live &= ~(1u << lane.number);
  warp.ready &= ~(1u << lane.number);
  block.live--;
  w.live--;
  // Who has returned is not waited for any more.
  for (uint32_t i = warp.num_meetings; i-- > 0;) {
    const Meeting& m = warp.meetings[i];
    if (m.arrived && m.arrived == (m.mask & warp.live)) close_meeting(warp, i);
  }
  Barrier& b = block.barriers[0];
  if (b.arrived && b.expected == 0 && b.arrived == block.live) open_barrier(block, b);
}

SIMT_QUIET void enter_lane() {
  after_switch(nullptr);
  Worker& w = *here;
#if SIMT_TSAN
  __tsan_acquire(&w);
#endif
  w.launch->kernel->run(w.launch->args);
#if SIMT_TSAN
  __tsan_release(&w);
#endif
  finish_lane();
  wait_for_others();
  __builtin_unreachable();
}

SIMT_QUIET void reset_stack(Lane& lane) {
  // Stacks begin at multiples of a page; were their ends so too, the lanes of a warp would share a few lines of the cache.
  char* const end = lane.stack + STACK - lane.thread % 16 * 17 * 64;
#if SIMT_ASAN
  // Frames that were left, not returned from, have marked their surroundings.
  __asan_unpoison_memory_region(lane.stack, STACK);
#endif
#if defined(__x86_64__)
  void** sp = reinterpret_cast<void**>(end);
  *--sp = nullptr;  // Where a call would return to: 8 past a multiple of 16, as a function expects.
  *--sp = reinterpret_cast<void*>(&enter_lane);
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  lane.sp = sp;
#else
  char* sp = end - 160;
  memset(sp, 0, 160);
  const void* entry = reinterpret_cast<void*>(&enter_lane);
  memcpy(sp + 88, &entry, sizeof entry);
  lane.sp = sp;
#endif
}

}  // namespace

void Worker::prepare(uint32_t num_blocks, uint32_t threads) {
  const uint32_t per_block = (threads + LANES - 1) / LANES;
  const uint32_t num_lanes = num_blocks * per_block * LANES;
  if (blocks.size() < num_blocks) blocks.resize(num_blocks);
  if (blocks.size() > num_blocks) {
    for (size_t i = num_blocks; i < blocks.size(); i++)
      for (Region& r : blocks[i].regions) r.used = false;
  }
  warps.resize(num_blocks * per_block);
  lanes.resize(num_lanes);
  if (copies.size() < num_lanes) copies.resize(num_lanes);
  while (stacks.size() < num_lanes) stacks.push_back(new_stack());
  for (uint32_t b = 0; b < num_blocks; b++) {
    blocks[b].warps = &warps[b * per_block];
    blocks[b].num_warps = per_block;
    for (uint32_t i = 0; i < per_block; i++) {
      Warp& warp = warps[b * per_block + i];
      warp.number = i;
      warp.lanes = &lanes[(b * per_block + i) * LANES];
      for (uint32_t l = 0; l < LANES; l++) {
        Lane& lane = warp.lanes[l];
        const uint32_t at = static_cast<uint32_t>(&lane - lanes.data());
        lane.warp = &warp;
        lane.block = &blocks[b];
        lane.number = l;
        lane.thread = i * LANES + l;
        lane.stack = stacks[at];
        lane.copies = &copies[at];
        lane.give = &warp.in[l];
        lane.got = &warp.out[l];
        lane.finished = true;
        lane.site = {};
#if SIMT_TSAN
        if (!lane.sanitizer) lane.sanitizer = __tsan_create_fiber(0);
#endif
      }
    }
  }
}

void Worker::begin(Block& block, Dim3 index) {
  const Dim3 size = launch->shape.block;
  const uint32_t threads = size.x * size.y * size.z;
  block.index = index;
  block.live = threads;
  block.static_bytes = 0;
  for (Barrier& b : block.barriers) b = {};
  for (Region& r : block.regions) r.used = false;
  if (launch->dynamic_bytes) {
    if (!block.dynamic_end) block.dynamic_end = guarded(MAX_DYNAMIC);
    const size_t bytes = round_up(launch->dynamic_bytes, 128);
    block.dynamic = block.dynamic_end - bytes;
    poison_bytes(block.dynamic, bytes, poison);
  }
  for (uint32_t i = 0; i < block.num_warps; i++) {
    Warp& warp = block.warps[i];
    const uint32_t in_warp = threads - i * LANES < LANES ? threads - i * LANES : LANES;
    warp.live = warp.ready = static_cast<uint32_t>((uint64_t{1} << in_warp) - 1);
    warp.num_meetings = 0;
    for (uint32_t l = 0; l < in_warp; l++) {
      Lane& lane = warp.lanes[l];
      lane.index = {lane.thread % size.x, lane.thread / size.x % size.y, lane.thread / size.x / size.y};
      lane.finished = lane.has_waited = false;
      lane.site = {};
      lane.copies->queue.clear();
      lane.copies->groups.clear();
      lane.copies->done = 0;
      reset_stack(lane);
    }
  }
  live += threads;
}

// Runs what `begin` prepared until all have returned, or somebody failed, or nobody can go on.
SIMT_QUIET void Worker::run() {
#if SIMT_TSAN
  __tsan_release(this);
#endif
  Lane* first = other_warp();
  void* fake = nullptr;
  switches++;
  before_switch(&fake, first, *this);
  current = first;
  simt_switch(&main_sp, first->sp);
  after_switch(fake);
  current = nullptr;
#if SIMT_TSAN
  __tsan_acquire(this);
#endif
  if (report->kind == 0 && live > 0) {
    const Lane* waiting = nullptr;
    for (const Lane& lane : lanes)
      if (!lane.finished && !waiting) waiting = &lane;
    begin_report(*this, 1, nullptr);
    Report& r = *report;
    r.block[0] = waiting->block->index.x, r.block[1] = waiting->block->index.y, r.block[2] = waiting->block->index.z;
    say(r, "deadlock: nobody can go on");
    say_who_waits(r, *this);
    const uint32_t gone = launch->shape.block.x * launch->shape.block.y * launch->shape.block.z - waiting->block->live;
    if (gone) say(r, "\n  %u threads of the block have returned", gone);
  }
}

// ---- Traps: an access outside of everything ends the fiber, not the process.

namespace {

struct sigaction old_actions[NSIG];

void describe_shared(Report& r, const Worker& w) {
  const uint8_t* at = reinterpret_cast<const uint8_t*>(r.address);
  for (const Block& block : w.blocks) {
    for (size_t id = 0; id < block.regions.size(); id++) {
      const Region& region = block.regions[id];
      if (!region.data) continue;
      const uint8_t* end = region.data + region.bytes;
      if (at >= region.data - 2 * page() && at < end + 2 * page()) {
        r.shared_name = shared_names[id];
        r.shared_past = at >= end ? at - end : at - region.data;
        return;
      }
    }
    if (block.dynamic && at >= block.dynamic_end - MAX_DYNAMIC - page() && at < block.dynamic_end + page()) {
      r.shared_name = "dynamic shared memory";
      const uint8_t* end = block.dynamic + w.launch->dynamic_bytes;
      r.shared_past = at >= end ? at - end : at - block.dynamic;
      return;
    }
  }
}

void on_signal(int signal, siginfo_t* info, void* context) {
  Worker* w = here;
  if (!w || !current || w->report->kind != 0) {
    // Not ours: whoever was there before decides.
    const struct sigaction& old = old_actions[signal];
    if (old.sa_flags & SA_SIGINFO) return old.sa_sigaction(signal, info, context);
    if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN) {
      struct sigaction standard {};
      standard.sa_handler = SIG_DFL;
      sigaction(signal, &standard, nullptr);
      return;
    }
    return old.sa_handler(signal);
  }
  ucontext_t* uc = static_cast<ucontext_t*>(context);
  begin_report(*w, 2, current);
  Report& r = *w->report;
  r.signal = static_cast<uint32_t>(signal);
  r.address = reinterpret_cast<uint64_t>(info->si_addr);
  const char* stack = current->stack;
  if (reinterpret_cast<const char*>(info->si_addr) >= stack - page() && reinterpret_cast<const char*>(info->si_addr) < stack) {
    r.kind = 1;
    say(r, "a thread's stack of %zu KiB overflows: arrays that large cannot be in registers", STACK >> 10);
  }
  describe_shared(r, *w);
  current = nullptr;
#if defined(__x86_64__)
  r.ip = static_cast<uint64_t>(uc->uc_mcontext.gregs[REG_RIP]);
  r.is_write = uc->uc_mcontext.gregs[REG_ERR] >> 1 & 1;
  uc->uc_mcontext.gregs[REG_RSI] = reinterpret_cast<greg_t>(w->main_sp);
  uc->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&simt_load);
#else
  r.ip = uc->uc_mcontext.pc;
  uc->uc_mcontext.regs[1] = reinterpret_cast<uint64_t>(w->main_sp);
  uc->uc_mcontext.pc = reinterpret_cast<uint64_t>(&simt_load);
#endif
}

void install_handlers() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
      struct sigaction action {};
      action.sa_sigaction = on_signal;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      sigemptyset(&action.sa_mask);
      sigaction(signal, &action, &old_actions[signal]);
    }
  });
}

Worker* take_worker() {
  std::lock_guard<std::mutex> lock(pool_lock);
  if (pool.empty()) return new Worker;
  Worker* w = pool.back();
  pool.pop_back();
  return w;
}

void set_order(Worker& w, uint64_t seed) {
  // 0 and 1 are the two extremes; beyond them everything is drawn.
  w.random.state = seed;
  const uint64_t bits = w.random.next();
  w.shuffled = seed >= 2;
  w.backward = seed < 2 ? seed == 1 : bits & 1;
  w.eager = seed < 2 ? seed == 1 : bits >> 1 & 1;
  w.mixed = seed >= 4 && bits >> 2 & 1;
  w.poison = (seed < 2 ? seed == 1 : bits >> 3 & 1) ? 0x7f : 0xff;
}

uint32_t gcd(uint32_t a, uint32_t b) { return b ? gcd(b, a % b) : a; }

}  // namespace

// Runs blocks of the launch until none is left or one failed. Any number of threads may do so at once.
extern "C" void simt_work(Launch* launch, Report* report) {
  install_handlers();
  Worker* w = take_worker();
  Worker* outer = here;
  here = w;
  w->launch = launch;
  w->report = report;
  w->switches = w->polls = 0;
#if SIMT_TSAN
  w->main_sanitizer = __tsan_get_current_fiber();
#endif
  const Shape shape = launch->shape;
  const uint32_t threads = shape.block.x * shape.block.y * shape.block.z;
  const uint32_t total = shape.grid.x * shape.grid.y * shape.grid.z;
  set_order(*w, launch->seed);
  const auto index = [&](uint32_t i) { return Dim3{i % shape.grid.x, i / shape.grid.x % shape.grid.y, i / shape.grid.x / shape.grid.y}; };
  if (launch->cooperative) {
    if (launch->next.exchange(1) == 0) {
      w->prepare(total, threads);
      w->live = 0;
      w->grid = {};
      for (uint32_t i = 0; i < total; i++) w->begin(w->blocks[i], index(i));
      w->run();
    }
  } else {
    w->prepare(1, threads);
    uint32_t stride = w->shuffled ? static_cast<uint32_t>(launch->seed * 2654435761u % total) : 1;
    while (gcd(stride, total) != 1) stride++;
    for (;;) {
      const uint32_t i = launch->next.fetch_add(1);
      if (i >= total || launch->failed.load()) break;
      const uint32_t at = static_cast<uint32_t>(static_cast<uint64_t>(i) * stride % total);
      w->live = 0;
      w->random.state = launch->seed * 0x10001 + at;
      w->begin(w->blocks[0], index(w->backward ? total - 1 - at : at));
      w->run();
      if (w->blocks[0].static_bytes > report->static_shared) report->static_shared = w->blocks[0].static_bytes;
      if (report->kind != 0) {
        launch->failed.store(1);
        break;
      }
    }
  }
  report->switches += w->switches;
  here = outer;
  std::lock_guard<std::mutex> lock(pool_lock);
  pool.push_back(w);
}

}  // namespace simt
