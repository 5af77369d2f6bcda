// A small pool of threads that share chunks of rows.
#pragma once
#include <cstdint>
#include <functional>

namespace amm {

// GOMP_parallel of an OpenMP run-time: calls body(data) once on each of `threads` threads, the caller's among them.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// From now on share() runs on the `team` threads of this run-time where so many suffice, in this process and not in its
// forks; null: always on its own.
void borrow(Parallel parallel, int team);

// Calls work(chunk) for every chunk in [0, chunks) on up to `threads` threads, the caller's among them. Runs on the
// caller alone when the pool is busy with another call, so that concurrent callers never wait for each other.
void share(int64_t chunks, int threads, const std::function<void(int64_t)>& work);

}  // namespace amm
