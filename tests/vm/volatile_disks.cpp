// SPDX-License-Identifier: Apache-2.0
// The disks of a guest whose power can be cut (tests/vm/power_loss_test.sh), over NBD.
//   volatile_disks SEED DISK...      each DISK is a file; its socket is DISK.sock
// SIGUSR1 cuts the power, in the middle of one of the next writes: each disk loses its cache, or a
// part of it, and says so in a line "DISK: ..."; then "power cut". After the next SIGUSR1, and
// "power on", they serve again. SIGUSR2 makes liars of all: from then on a flush makes nothing
// stable. SIGTERM is an orderly end. Equal seeds and requests give equal losses.
#include <signal.h>
#include <syslog.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/frontend/nbd_server.hpp"
#include "tests/vm/volatile_disk.hpp"

namespace replica {
namespace {

constexpr std::uint32_t small_buffers = 128, large_buffers = 64;
constexpr std::uint64_t writes_until_cut_max = 40;

struct Disk {
    std::string path;
    std::unique_ptr<VolatileDisk> volume;
    std::unique_ptr<NbdServer> server;
};

int fail(const Error& error) {
    std::fprintf(stderr, "volatile_disks: %s\n", error.message.c_str());
    return 1;
}

void stop_next(Reactor& reactor, std::vector<Disk>& disks) {
    if (disks.empty()) return reactor.stop();
    disks.back().volume->power_on();
    disks.back().server->stop([&reactor, &disks] {
        disks.back().volume->write_back();
        disks.pop_back();
        stop_next(reactor, disks);
    });
}

Status add(Reactor& reactor, BufferPool& pool, const std::string& path, std::uint64_t seed,
           std::vector<Disk>& disks) {
    Disk disk;
    disk.path = path;
    TRY(disk.volume, VolatileDisk::open(reactor, pool, path, seed));
    NbdServerOptions options;
    options.log = [](int level, const std::string& line) {
        if (level < LOG_WARNING) std::fprintf(stderr, "%s\n", line.c_str());
    };
    disk.server = std::make_unique<NbdServer>(reactor, *disk.volume, "disk", options);
    TRY_STATUS(disk.server->start("unix:" + disk.path + ".sock"));
    disks.push_back(std::move(disk));
    return ok_status();
}

// All disks of one machine.
struct Power {
    std::vector<Disk>& disks;
    Prng prng;
    bool on = true;
    std::uint64_t writes_left = 0;  // until it is cut; 0: nobody wants that

    void toggle() {
        if (on) {
            writes_left = 1 + prng.below(writes_until_cut_max);
            return;
        }
        on = true;
        for (Disk& disk : disks)
            disk.volume->power_on();
        say("power on");
    }
    void count_write() {
        if (writes_left == 0 || --writes_left != 0) return;
        on = false;
        for (Disk& disk : disks)
            say(disk.path + ": " + disk.volume->power_cut());
        say("power cut");
    }
    static void say(const std::string& line) {
        std::printf("%s\n", line.c_str());
        std::fflush(stdout);
    }
};

void make_liars(std::vector<Disk>& disks) {
    for (Disk& disk : disks)
        disk.volume->lie();
}

int serve(int argc, char** argv, const sigset_t& signals) {
    ReactorOptions options;
    options.arena_bytes = BufferPool::arena_bytes(small_buffers, large_buffers);
    auto reactor = Reactor::create(options);
    if (!reactor) return fail(reactor.error());
    auto pool = BufferPool::create(*reactor.value(), small_buffers, large_buffers);
    if (!pool) return fail(pool.error());
    Prng seeds(std::strtoull(argv[1], nullptr, 0));
    std::vector<Disk> disks;
    int code = 0;
    for (int i = 2; i < argc && code == 0; ++i) {
        const auto status = add(*reactor.value(), *pool.value(), argv[i], seeds.next(), disks);
        if (!status) code = fail(status.error());
    }
    Power power{disks, seeds};
    for (Disk& disk : disks)
        disk.volume->after_write = [&power] { power.count_write(); };
    const auto stop = [&] { stop_next(*reactor.value(), disks); };
    std::thread waiter;
    if (code != 0) {
        reactor.value()->post(stop);
    } else {
        waiter = std::thread([&] {
            for (int signal = 0; signal != SIGTERM && signal != SIGINT;) {
                sigwait(&signals, &signal);
                if (signal == SIGUSR1) reactor.value()->post([&] { power.toggle(); });
                if (signal == SIGUSR2) reactor.value()->post([&] { make_liars(disks); });
            }
            reactor.value()->post(stop);
        });
        std::printf("serving\n");
        std::fflush(stdout);
    }
    reactor.value()->run();
    if (waiter.joinable()) waiter.join();
    return code;
}

}  // namespace
}  // namespace replica

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: volatile_disks SEED DISK...\n");
        return 2;
    }
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2})
        sigaddset(&signals, signal);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    return replica::serve(argc, argv, signals);
}
