// SPDX-License-Identifier: Apache-2.0
// The kernel's NBD client by hand, for nbd_test.sh: connects /dev/nbdN to a server's Unix socket.
//
//   nbd_attach connect SOCKET EXPORT BACKEND [INDEX]       prints the index
//   nbd_attach reconfigure SOCKET EXPORT BACKEND INDEX     gives it a new connection
//   nbd_attach grow BYTES BACKEND INDEX
//   nbd_attach disconnect INDEX
//   nbd_attach status                                      a line for each: INDEX STATE [BACKEND]
//   nbd_attach watch SECONDS                               a line for each lost connection: INDEX
//
// Exit status: 0, 2 for a bad command line, else 10 and the code of the error (engine/base).
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "bench/nbd_client.hpp"
#include "netlink/nbd_device.hpp"

namespace {

using namespace replica;
using Arguments = std::vector<std::string>;

constexpr std::uint32_t dead_connection_s = 86400;

int number(const std::string& text) { return std::atoi(text.c_str()); }

// A connection in the transmission phase.
struct Served {
    test::NbdClient client{60};
    int fd = -1;

    Status open(const std::string& socket, const std::string& name) {
        if (!client.open(socket, name)) return Error{Errc::io, 0, client.why()};
        fd = client.release();
        return ok_status();
    }
    ~Served() {
        if (fd >= 0) ::close(fd);
    }
};

Status connect(NbdControl& control, const Arguments& a) {
    Served served;
    TRY_STATUS(served.open(a[0], a[1]));
    NbdDeviceConfig config;
    if (a.size() > 3) config.index = number(a[3]);
    config.size_bytes = served.client.size_bytes();
    config.transmission_flags = served.client.transmission_flags();
    config.backend = a[2];
    config.dead_connection_s = dead_connection_s;
    TRY(const int index, control.connect(config, {&served.fd, 1}));
    std::printf("%d\n", index);
    return ok_status();
}

Status reconfigure(NbdControl& control, const Arguments& a) {
    Served served;
    TRY_STATUS(served.open(a[0], a[1]));
    NbdDeviceChange change;
    change.backend = a[2];
    return control.reconfigure(number(a[3]), change, {&served.fd, 1});
}

Status grow(NbdControl& control, const Arguments& a) {
    NbdDeviceChange change;
    change.size_bytes = std::strtoull(a[0].c_str(), nullptr, 10);
    change.backend = a[1];
    return control.reconfigure(number(a[2]), change, {});
}

Status status(NbdControl& control) {
    TRY(const std::vector<NbdDeviceState> states, control.status());
    for (const NbdDeviceState& state : states) {
        std::printf("%d %s %s\n", state.index, state.connected ? "connected" : "free",
                    NbdControl::backend_of(state.index).c_str());
    }
    return ok_status();
}

Status watch(NbdControl& control, const Arguments& a) {
    std::puts("watching");
    std::fflush(stdout);
    pollfd polled{control.fd(), POLLIN, 0};
    while (::poll(&polled, 1, number(a[0]) * 1000) > 0) {
        TRY(const std::vector<int> dead, control.read_dead_links());
        for (const int index : dead)
            std::printf("%d\n", index);
        std::fflush(stdout);
    }
    return ok_status();
}

Status run(const std::string& command, const Arguments& a, bool& known) {
    TRY(const auto control, NbdControl::open());
    if (command == "connect" && (a.size() == 3 || a.size() == 4)) return connect(*control, a);
    if (command == "reconfigure" && a.size() == 4) return reconfigure(*control, a);
    if (command == "grow" && a.size() == 3) return grow(*control, a);
    if (command == "disconnect" && a.size() == 1) return control->disconnect(number(a[0]));
    if (command == "status" && a.empty()) return status(*control);
    if (command == "watch" && a.size() == 1) return watch(*control, a);
    known = false;
    return ok_status();
}

}  // namespace

int main(int argc, char** argv) {
    bool known = argc > 1;
    const Status done = known ? run(argv[1], Arguments(argv + 2, argv + argc), known) : ok_status();
    if (!known) {
        std::fputs("usage: see the head of nbd_attach.cpp\n", stderr);
        return 2;
    }
    if (done) return 0;
    std::fprintf(stderr, "nbd_attach: %s\n", done.error().message.c_str());
    return 10 + static_cast<int>(done.error().code);
}
