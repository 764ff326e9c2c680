// The landing of a background copy, apart from the engine: a race detector is to see both of its ends.
#include "engine.hpp"

namespace simt {

void land(void* to, const void* from, uint32_t bytes, uint32_t valid) {
  uint32_t* t = static_cast<uint32_t*>(to);
  const uint32_t* f = static_cast<const uint32_t*>(from);
  for (uint32_t i = 0; i < bytes / 4; i++) t[i] = i < valid / 4 ? f[i] : 0;
}

}  // namespace simt
