// SPDX-License-Identifier: Apache-2.0
// What a registered file would save: processor time of an io_uring operation that does nothing
// else worth mentioning (a write to /dev/null; 64 bytes through a socket pair), with the descriptor
// and with a registered file, in rounds that alternate. docs/io.md draws the conclusion.
#include <fcntl.h>
#include <liburing.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

namespace {

constexpr unsigned batch = 16;
constexpr unsigned bytes = 64;

[[noreturn]] void die(const char* what, int error) {
    std::fprintf(stderr, "files: %s: %s\n", what, std::strerror(error));
    std::exit(1);
}

double cpu_ns() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}

struct Bench {
    io_uring ring{};
    std::array<int, 3> fds{};  // /dev/null and the two ends of a socket pair
    std::array<char, bytes> buffer{};

    Bench() {
        io_uring_params params{};
        params.flags = IORING_SETUP_COOP_TASKRUN;
        const int made = io_uring_queue_init_params(2 * batch, &ring, &params);
        if (made < 0) die("io_uring", -made);
        fds[0] = open("/dev/null", O_WRONLY | O_CLOEXEC);
        if (fds[0] < 0) die("/dev/null", errno);
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, &fds[1]) != 0) die("sockets", errno);
        const int registered =
            io_uring_register_files(&ring, fds.data(), static_cast<unsigned>(fds.size()));
        if (registered < 0) die("registering files", -registered);
    }

    void queue(bool sockets, bool fixed, unsigned i) {
        io_uring_sqe* const sqe = io_uring_get_sqe(&ring);
        const std::size_t file = !sockets ? 0 : 1 + i % 2;
        const int fd = fixed ? static_cast<int>(file) : fds[file];
        if (file == 0) io_uring_prep_write(sqe, fd, buffer.data(), bytes, 0);
        if (file == 1) io_uring_prep_send(sqe, fd, buffer.data(), bytes, 0);
        if (file == 2) io_uring_prep_recv(sqe, fd, buffer.data(), bytes, 0);
        if (fixed) sqe->flags |= IOSQE_FIXED_FILE;
    }

    // Nanoseconds of processor time an operation.
    double round(bool sockets, bool fixed, unsigned operations) {
        const double start = cpu_ns();
        for (unsigned done = 0; done < operations; done += batch) {
            for (unsigned i = 0; i < batch; ++i)
                queue(sockets, fixed, i);
            const int entered = io_uring_submit_and_wait(&ring, batch);
            if (entered < 0) die("io_uring_enter", -entered);
            for (unsigned i = 0; i < batch; ++i) {
                io_uring_cqe* cqe = nullptr;
                if (io_uring_wait_cqe(&ring, &cqe) != 0 || cqe->res != static_cast<int>(bytes))
                    die("an operation", cqe != nullptr && cqe->res < 0 ? -cqe->res : EIO);
                io_uring_cqe_seen(&ring, cqe);
            }
        }
        return (cpu_ns() - start) / operations;
    }
};

}  // namespace

int main(int argc, char** argv) {
    bool quick = false;
    const char* json = nullptr;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--quick") == 0) {
            quick = true;
        } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
            json = argv[++i];
        } else {
            std::fputs("usage: files [--quick] [--json FILE]\n", stderr);
            return 2;
        }
    }
    Bench bench;
    std::FILE* const out = json != nullptr ? std::fopen(json, "w") : nullptr;
    if (json != nullptr && out == nullptr) die(json, errno);
    std::puts("| operation | descriptor, ns | registered file, ns |\n| --- | --- | --- |");
    for (const bool sockets : {false, true}) {
        std::array<std::vector<double>, 2> times;
        for (int i = 0; i < (quick ? 11 : 41); ++i) {
            for (const bool fixed : {false, true})
                times[fixed ? 1 : 0].push_back(bench.round(sockets, fixed, 160'000));
        }
        for (auto& rounds : times)
            std::sort(rounds.begin(), rounds.end());
        const double plain = times[0][times[0].size() / 2], fixed = times[1][times[1].size() / 2];
        const char* const name = sockets ? "send or recv of 64 bytes" : "write to /dev/null";
        std::printf("| %s | %.0f | %.0f |\n", name, plain, fixed);
        if (out != nullptr) {
            std::fprintf(out,
                         "%s{\"operation\":\"%s\",\"descriptor_ns\":%.1f,\"registered_ns\":%.1f}",
                         sockets ? ",\n" : "[", name, plain, fixed);
        }
    }
    if (out != nullptr) {
        std::fputs("]\n", out);
        std::fclose(out);
    }
    return 0;
}
