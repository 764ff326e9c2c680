// Runs kept launches again, in a program that a sanitizer watches: replay FILE... Says which kernel each report is of.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <atomic>
#include <sys/mman.h>
#include <unistd.h>

#include "simt/engine.hpp"

#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

// As `engine.cpp` has them.
namespace simt {
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
struct Report {
  uint32_t kind;
  uint32_t signal, is_write, has_thread;
  uint32_t block[3], thread[3];
  uint64_t ip, address;
  uint64_t switches;
  uint64_t static_shared;
  const char* shared_name;
  int64_t shared_past;
  char message[4096];
};
extern "C" void simt_work(Launch*, Report*);
}  // namespace simt
extern "C" const simt::Table* const simt_tables[];

namespace {

const simt::Kernel* find(const std::string& name) {
  for (const simt::Table* const* t = simt_tables; *t; t++)
    for (size_t i = 0; i < (*t)->count; i++)
      if (name == (*t)->kernels[i].name) return &(*t)->kernels[i];
  return nullptr;
}

template <class T>
T take(const char*& at) {
  T x;
  memcpy(&x, at, sizeof x);
  at += sizeof x;
  return x;
}

// A buffer where it was, its surroundings out of bounds.
struct Buffer {
  uint8_t* pages;
  size_t bytes;
  Buffer(uint64_t address, const char* content, size_t len) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const uint64_t begin = address / page * page, end = (address + len + page) / page * page;
    bytes = end - begin;
    pages = reinterpret_cast<uint8_t*>(begin);
    if (mmap(pages, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != pages) {
      perror("replay: the place of a buffer is not free");
      exit(3);
    }
    memcpy(reinterpret_cast<void*>(address), content, len);
#if SIMT_ASAN
    __asan_poison_memory_region(pages, address - begin);
    __asan_poison_memory_region(reinterpret_cast<void*>(address + len), end - address - len);
#endif
  }
  ~Buffer() {
#if SIMT_ASAN
    __asan_unpoison_memory_region(pages, bytes);
#endif
    munmap(pages, bytes);
  }
};

bool replay(const char* path, uint64_t seed) {
  FILE* file = fopen(path, "rb");
  if (!file) return perror(path), false;
  std::string text;
  char piece[65536];
  for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) text.append(piece, n);
  fclose(file);
  const size_t line = text.find('\n');
  const std::string name = text.substr(0, line);
  const simt::Kernel* kernel = find(name);
  if (!kernel) return fprintf(stderr, "replay: no kernel %s\n", name.c_str()), false;
  const char* at = text.data() + line + 1;
  simt::Launch launch{};
  launch.kernel = kernel;
  launch.shape = take<simt::Shape>(at);
  launch.dynamic_bytes = take<uint32_t>(at);
  launch.cooperative = take<uint32_t>(at);
  take<uint64_t>(at);  // The seed it had.
  launch.seed = seed;
  launch.shared_limit = 227 << 10;
  const uint64_t args = take<uint64_t>(at);
  const std::vector<char> copy(at, at + args);
  launch.args = copy.data();
  at += args;
  std::vector<Buffer*> buffers;
  while (at < text.data() + text.size()) {
    const uint64_t address = take<uint64_t>(at), len = take<uint64_t>(at);
    buffers.push_back(new Buffer(address, at, len));
    at += len;
  }
  fprintf(stderr, "replay: %s, seed %u\n", name.c_str(), static_cast<unsigned>(seed));
  simt::Report reports[2]{};
  std::thread other([&] { simt::simt_work(&launch, &reports[1]); });
  simt::simt_work(&launch, &reports[0]);
  other.join();
  bool fine = true;
  for (const simt::Report& r : reports)
    if (r.kind) fine = false, fprintf(stderr, "replay: %s failed: %s\n", name.c_str(), r.kind == 2 ? "a trap" : r.message);
  for (Buffer* buffer : buffers) delete buffer;
  return fine;
}

}  // namespace

int main(int count, char** paths) {
  bool fine = true;
  // The two extremes: copies that land as late as they may race with nothing that early ones do.
  for (int i = 1; i < count; i++)
    for (uint64_t seed : {0, 1}) fine &= replay(paths[i], seed);
  return fine ? 0 : 1;
}
