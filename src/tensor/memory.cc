#include "tensor/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace longstride {

void* allocate_zeroed(std::int64_t bytes) {
  constexpr std::size_t kLine = 64, kHugePage = std::size_t{2} << 20;
  const auto wanted = static_cast<std::size_t>(bytes);
  const std::size_t alignment = wanted >= 2 * kHugePage ? kHugePage : kLine;
  void* const block =
      std::aligned_alloc(alignment, (wanted + alignment - 1) / alignment * alignment);
  if (wanted == 0) return block;
  if (block == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Only a wish: without huge pages the block works as well.
  if (alignment == kHugePage) (void)::madvise(block, wanted, MADV_HUGEPAGE);
#endif
  std::memset(block, 0, wanted);
  return block;
}

void release(void* block) { std::free(block); }

}  // namespace longstride
