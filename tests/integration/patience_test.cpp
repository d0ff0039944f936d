// SPDX-License-Identifier: Apache-2.0
// Waiting for what may never end: commands of io_uring, calls on a thread, other programs.
#include <fcntl.h>
#include <liburing.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "engine/frontend/patient_ring.hpp"
#include "engine/io/patient_thread.hpp"
#include "engine/io/program.hpp"
#include "tests/integration/io_support.hpp"

using namespace replica;
using namespace replica::test;
using std::chrono::milliseconds;

namespace {

using Clock = std::chrono::steady_clock;

struct Pipe {
    int ends[2] = {-1, -1};
    Pipe() { REQUIRE(::pipe2(ends, O_CLOEXEC) == 0); }
    ~Pipe() {
        ::close(ends[0]);
        ::close(ends[1]);
    }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    void say(char what) const { REQUIRE(::write(ends[1], &what, 1) == 1); }
    // A command that ends when somebody says something, named by `key`.
    int read(PatientRing& ring, std::uint64_t key, char& heard, bool heeds_cancel = false) const {
        return ring.run(
            {key, heeds_cancel},
            [this](io_uring_sqe& entry, PatientRing::Memory& memory) {
                ++given;
                const auto mark = entry.user_data;
                io_uring_prep_read(&entry, ends[0], memory.data(), 1,
                                   static_cast<std::uint64_t>(-1));
                entry.user_data = mark;
            },
            std::as_writable_bytes(std::span<char, 1>(&heard, 1)));
    }
    mutable int given = 0;
};

std::unique_ptr<PatientRing> make_ring(milliseconds limit = milliseconds(50)) {
    auto ring = PatientRing::create(limit, milliseconds(2000));
    REQUIRE(ring);
    return std::move(ring).value();
}

}  // namespace

TEST_CASE("a command that does not end is nobody else's trouble, and is not given twice") {
    const auto ring = make_ring(milliseconds(200));
    const Pipe stuck, well;
    char heard = 0;
    REQUIRE(stuck.read(*ring, 1, heard) == -ETIME);
    CHECK(ring->left_behind() == 1);
    well.say('a');
    CHECK(well.read(*ring, 2, heard) == 1);
    CHECK(heard == 'a');
    // The same again: it goes on waiting, and ends when the first one does.
    CHECK(stuck.read(*ring, 1, heard) == -ETIME);
    CHECK(ring->left_behind() == 1);
    std::thread later([&] {
        std::this_thread::sleep_for(milliseconds(50));
        stuck.say('b');
    });
    CHECK(stuck.read(*ring, 1, heard) == 1);
    later.join();
    CHECK(heard == 'b');
    CHECK(stuck.given == 1);
    CHECK(ring->left_behind() == 0);
}

TEST_CASE("a command that has ended meanwhile is given anew") {
    const auto ring = make_ring();
    const Pipe pipe;
    char heard = 0;
    REQUIRE(pipe.read(*ring, 1, heard) == -ETIME);
    pipe.say('a');  // nobody is told
    std::this_thread::sleep_for(milliseconds(20));
    pipe.say('b');
    CHECK(pipe.read(*ring, 1, heard) == 1);
    CHECK(heard == 'b');
    CHECK(pipe.given == 2);
}

TEST_CASE("a command that heeds it is asked to end, and the next one is none the worse") {
    const auto ring = make_ring();
    const Pipe pipe;
    char heard = 0;
    CHECK(pipe.read(*ring, 1, heard, true) == -ETIME);
    CHECK(ring->left_behind() == 0);
    pipe.say('a');
    CHECK(pipe.read(*ring, 1, heard, true) == 1);
    CHECK(heard == 'a');
}

TEST_CASE("the memory of a command that never ends outlives its ring") {
    const Pipe pipe;
    {
        const auto ring = make_ring();
        char heard = 0;
        REQUIRE(pipe.read(*ring, 1, heard) == -ETIME);
    }
    pipe.say('a');  // the kernel writes it there; a sanitizer would see it
    std::this_thread::sleep_for(milliseconds(20));
}

TEST_CASE("a call that never ends is left behind, and what follows it waits, or is not done") {
    auto thread = PatientThread::start("the test", milliseconds(100));
    REQUIRE(thread);
    const auto go_on = std::make_shared<std::atomic<bool>>(false);
    const auto done = std::make_shared<std::atomic<int>>(0);
    const Status stuck = thread.value()->run(
        [go_on, done] {
            while (!*go_on)
                std::this_thread::sleep_for(milliseconds(1));
            ++*done;
            return ok_status();
        },
        milliseconds(20));
    REQUIRE_FALSE(stuck);
    CHECK(stuck.error().code == Errc::timeout);
    CHECK(stuck.error().message == "the test does not answer");
    const auto next = [done] {
        ++*done;
        return ok_status();
    };
    const Status late = thread.value()->run(next, milliseconds(20));
    REQUIRE_FALSE(late);
    CHECK(late.error().message == "the test is busy with something that does not end");
    *go_on = true;
    CHECK(thread.value()->run(next, milliseconds(5000)));
    CHECK(*done == 2);
}

TEST_CASE("a call that is interrupted says so") {
    auto thread = PatientThread::start("the test");
    REQUIRE(thread);
    const Status slept = thread.value()->run(
        [] {
            const timespec long_time{60, 0};
            if (::nanosleep(&long_time, nullptr) == 0) return ok_status();
            return Status(Error{Errc::timeout, errno, "woken"});
        },
        milliseconds(20));
    REQUIRE_FALSE(slept);
    CHECK(slept.error().os_errno == EINTR);
}

namespace {

// A shell script, started by its own name.
class Script {
  public:
    explicit Script(const std::string& text) {
        std::ofstream(path()) << "#!/bin/sh\n" << text;
        REQUIRE(::chmod(path().c_str(), 0700) == 0);
    }
    std::string path() const { return directory_ / "script"; }
    Program with(std::vector<std::string> words, milliseconds limit = milliseconds(10'000)) const {
        words.insert(words.begin(), "script");
        return {{"/nowhere/script", path()}, words, {"PATH=/bin:/usr/bin", "LC_ALL=C"}, limit};
    }

  private:
    TempDir directory_;
};

}  // namespace

TEST_CASE("a program's output and status are heard, and it reads nothing") {
    const Script script("echo \"$1 $LC_ALL\"; echo loud >&2; cat; exit 3\n");
    const auto ended = run_program(script.with({"said"}));
    REQUIRE(ended);
    CHECK(ended.value().status == 3);
    CHECK(ended.value().output == "said C\nloud\n");
    const auto none = run_program({{"/nowhere/script"}, {"script"}, {}, milliseconds(1000)});
    REQUIRE_FALSE(none);
    CHECK(none.error().code == Errc::unsupported);
}

// LVM hears SIGTERM where it leaves nothing half done; SIGKILL could leave a volume suspended.
TEST_CASE("a program that takes too long is asked to end, and waited for until it has") {
    const Script script(
        "trap 'sleep 0.3; echo put in order; exit 5' TERM\n"
        "while :; do sleep 0.05; done\n");
    const Clock::time_point began = Clock::now();
    const auto ended = run_program(script.with({}, milliseconds(200)));
    REQUIRE(ended);
    CHECK(ended.value().status == 5);
    CHECK(ended.value().output == "put in order\n");
    CHECK(Clock::now() - began >= milliseconds(500));
}

TEST_CASE("a program hears signals though the thread that starts it does not") {
    sigset_t all, before;
    ::sigfillset(&all);
    REQUIRE(::pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
    const Script script("exec sleep 60\n");
    const auto ended = run_program(script.with({}, milliseconds(200)));
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    REQUIRE_FALSE(ended);
    CHECK(ended.error().code == Errc::timeout);
}
