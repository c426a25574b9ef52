// Where buffers come from.
#pragma once

#include <cstdint>

namespace longstride {

// `bytes` zero bytes, aligned to 64. Large blocks start at a huge page and ask the system for huge
// pages: a lane of a column pattern touches one row in each of hundreds of pages, and walking page
// tables would cost as much as the arithmetic. Throws std::bad_alloc.
void* allocate_zeroed(std::int64_t bytes);
void release(void* block);

}  // namespace longstride
