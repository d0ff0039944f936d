// SPDX-License-Identifier: Apache-2.0
// Exports a file through NbdServer until SIGTERM: the program that the NBD tests drive with clients
// that others wrote. At the end it fails if a request or a buffer was lost.
#include <signal.h>
#include <syslog.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/frontend/nbd_server.hpp"
#include "tests/integration/nbd_file_volume.hpp"

namespace replica {
namespace {

struct Arguments {
    std::string file;
    std::string name = "volume";
    std::vector<std::string> doors;
    FileVolumeOptions volume;
    NbdServerOptions server;
    bool verbose = false;
};

int usage() {
    std::fprintf(
        stderr,
        "usage: nbd_file_server --file PATH --door unix:PATH|tcp:HOST:PORT [--door ...]\n"
        "  [--name NAME] [--read-only] [--buffers N] [--small-buffers N]\n"
        "  [--clients N] [--commands N] [--buffer-bytes N] [--handshake-ms N] [--stall-ms N]\n"
        "  [--close-ms N] [--delay-us N] [--fail OFFSET LENGTH] [--dirty OFFSET LENGTH]\n"
        "  [--verbose]\n");
    return 2;
}

bool parse(int argc, char** argv, Arguments& arguments) {
    const auto number = [&](int i) { return std::strtoull(argv[i], nullptr, 0); };
    for (int i = 1; i < argc; ++i) {
        const std::string_view option = argv[i];
        const int left = argc - 1 - i;
        const auto small = [&] { return static_cast<std::uint32_t>(number(++i)); };
        if (option == "--read-only") {
            arguments.volume.writable = false;
        } else if (option == "--verbose") {
            arguments.verbose = true;
        } else if (left < 1) {
            return false;
        } else if (option == "--file") {
            arguments.file = argv[++i];
        } else if (option == "--door") {
            arguments.doors.emplace_back(argv[++i]);
        } else if (option == "--name") {
            arguments.name = argv[++i];
        } else if (option == "--buffers") {
            arguments.volume.buffers = small();
        } else if (option == "--small-buffers") {
            arguments.volume.small_buffers = small();
        } else if (option == "--clients") {
            arguments.server.clients_max = small();
        } else if (option == "--commands") {
            arguments.server.commands_max = small();
        } else if (option == "--buffer-bytes") {
            arguments.server.buffer_bytes_max = small();
        } else if (option == "--handshake-ms") {
            arguments.server.handshake_timeout_ns = number(++i) * ns_per_ms;
        } else if (option == "--stall-ms") {
            arguments.server.stall_timeout_ns = number(++i) * ns_per_ms;
        } else if (option == "--close-ms") {
            arguments.server.close_timeout_ns = number(++i) * ns_per_ms;
        } else if (option == "--delay-us") {
            arguments.volume.delay_ns = number(++i) * 1000;
        } else if (left < 2) {
            return false;
        } else if (option == "--fail") {
            arguments.volume.fail_offset = number(++i);
            arguments.volume.fail_length = number(++i);
        } else if (option == "--dirty") {
            arguments.volume.dirty_offset = number(++i);
            arguments.volume.dirty_length = number(++i);
        } else {
            return false;
        }
    }
    return !arguments.file.empty() && !arguments.doors.empty();
}

int fail(const Error& error) {
    std::fprintf(stderr, "nbd_file_server: %s\n", error.message.c_str());
    return 1;
}

// Until a signal: then closes the doors, one after the other, and ends the reactor.
void stop_next(Reactor& reactor, std::vector<std::unique_ptr<NbdServer>>& servers) {
    if (servers.empty()) return reactor.stop();
    servers.back()->stop([&reactor, &servers] {
        servers.pop_back();
        stop_next(reactor, servers);
    });
}

int serve(Arguments& arguments) {
    ReactorOptions options;
    options.arena_bytes =
        BufferPool::arena_bytes(arguments.volume.small_buffers, arguments.volume.buffers);
    auto reactor = Reactor::create(options);
    if (!reactor) return fail(reactor.error());
    auto volume = FileVolume::open(*reactor.value(), arguments.file, arguments.volume);
    if (!volume) return fail(volume.error());
    arguments.server.log = [verbose = arguments.verbose](int level, const std::string& line) {
        if (level < LOG_DEBUG || verbose) std::fprintf(stderr, "<%d> %s\n", level, line.c_str());
    };
    std::vector<std::unique_ptr<NbdServer>> servers;
    for (const std::string& door : arguments.doors) {
        auto server = std::make_unique<NbdServer>(*reactor.value(), *volume.value(), arguments.name,
                                                  arguments.server);
        if (auto status = server->start(door); !status) {
            reactor.value()->post([&] { stop_next(*reactor.value(), servers); });
            reactor.value()->run();
            return fail(status.error());
        }
        std::printf("listening on %s\n", server->door().c_str());
        servers.push_back(std::move(server));
    }
    std::fflush(stdout);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    std::thread waiter([&] {
        int signal = 0;
        sigwait(&signals, &signal);
        reactor.value()->post([&] { stop_next(*reactor.value(), servers); });
    });
    reactor.value()->run();
    waiter.join();
    const FileVolume& v = *volume.value();
    std::printf("read %llu write %llu flush %llu discard %llu write_zeroes %llu\n",
                static_cast<unsigned long long>(v.requests_of(IoKind::read)),
                static_cast<unsigned long long>(v.requests_of(IoKind::write)),
                static_cast<unsigned long long>(v.requests_of(IoKind::flush)),
                static_cast<unsigned long long>(v.requests_of(IoKind::discard)),
                static_cast<unsigned long long>(v.requests_of(IoKind::write_zeroes)));
    if (v.buffers_used() == 0 && v.requests_in_flight() == 0) return 0;
    std::fprintf(stderr, "nbd_file_server: lost %u buffers and %u requests\n", v.buffers_used(),
                 v.requests_in_flight());
    return 1;
}

}  // namespace
}  // namespace replica

int main(int argc, char** argv) {
    replica::Arguments arguments;
    if (!replica::parse(argc, argv, arguments)) return replica::usage();
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    return replica::serve(arguments);
}
