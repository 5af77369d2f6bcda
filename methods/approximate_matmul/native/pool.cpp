#include "pool.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace amm {
namespace {

// How long a thread looks for work, or for the others' end, before it sleeps. A call takes some hundred microseconds and
// waking a sleeper tens of them, so calls that follow each other should not pay for it; a core that idles longer is
// given back.
constexpr std::chrono::microseconds kLook{100};

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

template <class Ready>
bool look_for(const Ready& ready) {
    const auto until = std::chrono::steady_clock::now() + kLook;
    do {
        for (int i = 0; i < 32; ++i, relax())
            if (ready()) return true;
    } while (std::chrono::steady_clock::now() < until);
    return false;
}

struct Pool {
    std::mutex caller;  // one call at a time
    std::mutex mutex;
    std::condition_variable wake, done;
    const std::function<void(int64_t)>* work = nullptr;
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<uint64_t> turn{0};
    std::atomic<int> running{0};
    int64_t chunks = 0;
    int wanted = 0, started = 0;
    pid_t owner = getpid();

    void take() {
        for (int64_t i; (i = next.fetch_add(1)) < chunks;) (*work)(i);
    }

    void loop(int index) {
        uint64_t seen = 0;
        for (;;) {
            look_for([&] { return turn.load() != seen; });
            std::unique_lock<std::mutex> lock(mutex);
            wake.wait(lock, [&] { return turn.load() != seen; });
            seen = turn.load();
            if (index >= wanted) continue;
            lock.unlock();
            take();
            if (running.fetch_sub(1) > 1) continue;
            lock.lock();
            done.notify_one();
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
        wanted = helpers < started ? helpers : started;
        running.store(wanted);
        turn.fetch_add(1);
        lock.unlock();
        wake.notify_all();
        take();
        if (look_for([&] { return running.load() == 0; })) return;
        lock.lock();
        done.wait(lock, [&] { return running.load() == 0; });
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

// OpenMP's threads look for work long after a parallel region ends, and on a core that one of them holds a thread of
// another pool gets next to nothing: so the work goes to them where they exist.
struct Lent {
    std::atomic<Parallel> parallel{nullptr};
    std::atomic<int> team{0};
    std::atomic<pid_t> lender{0};
} lent;

struct Team {
    const std::function<void(int64_t)>& work;
    const int64_t chunks;
    const int workers;
    std::atomic<int> came{0};
    alignas(64) std::atomic<int64_t> next{0};

    static void body(void* data) noexcept {
        Team* team = static_cast<Team*>(data);
        if (team->came.fetch_add(1) >= team->workers) return;
        for (int64_t i; (i = team->next.fetch_add(1)) < team->chunks;) team->work(i);
    }
};

// Always the run-time's whole team: one of another size would end its surplus threads and start them anew next time.
bool share_lent(int64_t chunks, int threads, const std::function<void(int64_t)>& work) {
    const Parallel parallel = lent.parallel;
    const int team = lent.team;
    // A fork holds OpenMP's state but none of its threads; its pool of its own is new.
    if (!parallel || threads > team || lent.lender != getpid()) return false;
    Team shared{work, chunks, threads};
    parallel(Team::body, &shared, static_cast<unsigned>(team), 0);
    return true;
}

}  // namespace

void borrow(Parallel parallel, int team) {
    lent.lender = getpid();
    lent.team = team;
    lent.parallel = parallel;
}

void share(int64_t chunks, int threads, const std::function<void(int64_t)>& work) {
    const int asked = threads;
    if (threads > chunks) threads = static_cast<int>(chunks);
    if (threads > 1) {
        Pool* p = pool();
        std::unique_lock<std::mutex> mine(p->caller, std::try_to_lock);
        if (mine.owns_lock()) {
            if (share_lent(chunks, asked, work)) return;
            p->run(chunks, threads - 1, work);
            return;
        }
    }
    for (int64_t i = 0; i < chunks; ++i) work(i);
}

}  // namespace amm
