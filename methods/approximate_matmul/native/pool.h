// A small pool of threads that share chunks of rows.
#pragma once
#include <cstdint>
#include <functional>

namespace amm {

// Calls work(chunk) for every chunk in [0, chunks) on up to `threads` threads, the caller's among them. Runs on the
// caller alone when the pool is busy with another call, so that concurrent callers never wait for each other.
void share(int64_t chunks, int threads, const std::function<void(int64_t)>& work);

}  // namespace amm
