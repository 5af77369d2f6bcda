#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace amm {
namespace {

struct Pool {
    std::mutex caller;  // one call at a time
    std::mutex mutex;
    std::condition_variable wake, done;
    const std::function<void(int64_t)>* work = nullptr;
    std::atomic<int64_t> next{0};
    int64_t chunks = 0;
    int wanted = 0, running = 0, started = 0;
    uint64_t turn = 0;
    pid_t owner = getpid();

    void take() {
        for (int64_t i; (i = next.fetch_add(1)) < chunks;) (*work)(i);
    }

    void loop(int index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return turn != seen; });
            seen = turn;
            if (index >= wanted) continue;
            lock.unlock();
            take();
            lock.lock();
            if (--running == 0) done.notify_one();
        }
    }

    void run(int64_t count, int helpers, const std::function<void(int64_t)>& task) {
        std::unique_lock<std::mutex> lock(mutex);
        // A thread starts with the turn of its first wait, so it must exist before the turn advances.
        while (started < helpers) {
            try {
                std::thread(&Pool::loop, this, started).detach();
            } catch (const std::system_error&) {
                break;  // no more threads to be had: those that exist, and the caller, do the work
            }
            ++started;
        }
        work = &task;
        chunks = count;
        next.store(0);
        wanted = running = helpers < started ? helpers : started;
        ++turn;
        lock.unlock();
        wake.notify_all();
        take();
        lock.lock();
        done.wait(lock, [&] { return running == 0; });
        work = nullptr;
    }
};

// Never destroyed: detached threads may outlive static destructors. A forked child gets a pool of its own.
Pool* pool() {
    static std::atomic<Pool*> current{nullptr};
    Pool* p = current.load();
    if (p && p->owner == getpid()) return p;
    Pool* fresh = new Pool;
    if (current.compare_exchange_strong(p, fresh)) return fresh;
    delete fresh;
    return current.load();
}

}  // namespace

void share(int64_t chunks, int threads, const std::function<void(int64_t)>& work) {
    if (threads > chunks) threads = static_cast<int>(chunks);
    if (threads > 1) {
        Pool* p = pool();
        std::unique_lock<std::mutex> mine(p->caller, std::try_to_lock);
        if (mine.owns_lock()) {
            p->run(chunks, threads - 1, work);
            return;
        }
    }
    for (int64_t i = 0; i < chunks; ++i) work(i);
}

}  // namespace amm
