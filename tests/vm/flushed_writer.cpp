// SPDX-License-Identifier: Apache-2.0
// Writes random blocks of a block device and records, outside of it, what a flush has covered;
// after a loss of power it proves that the device, or a replica of it, holds each recorded version
// or a later one.
//
//   flushed_writer write  DEVICE RECORD ROUND THREADS     until it is killed, or a write fails
//   flushed_writer verify DEVICE RECORD [--record-what-is-there]
//
// RECORD holds the version of each block, in 4 bytes each, and its length says how many blocks of
// the device are written. It has to survive the loss: each entry is written when the flush was
// answered. ROUND (1..32767) makes the versions of one run greater than those of all before.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "engine/base/units.hpp"

namespace {

using replica::block_bytes;
using replica::Prng;
using replica::sector_bytes;
using Versions = std::vector<std::uint32_t>;

constexpr std::size_t blocks_per_write_max = 16;
constexpr std::size_t writes_per_flush_max = 8, writes_per_late_flush_max = 100;
constexpr std::size_t blocks_per_read = 256;

[[noreturn]] void give_up(const std::string& what) {
    std::fprintf(stderr, "flushed_writer: %s: %s\n", what.c_str(), std::strerror(errno));
    std::_Exit(2);
}

struct Aligned {
    void operator()(std::byte* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<std::byte[], Aligned>;
Buffer make_buffer(std::size_t blocks) {
    Buffer buffer(static_cast<std::byte*>(std::aligned_alloc(block_bytes, blocks * block_bytes)));
    if (!buffer) give_up("memory");
    return buffer;
}

int open_file(const std::string& path, int flags) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
    if (fd < 0) give_up(path);
    return fd;
}

Versions load(const std::string& path) {
    const int fd = open_file(path, O_RDONLY);
    struct stat status {};
    if (::fstat(fd, &status) != 0) give_up(path);
    Versions versions(static_cast<std::size_t>(status.st_size) / sizeof(std::uint32_t));
    const std::size_t bytes = versions.size() * sizeof(std::uint32_t);
    for (std::size_t at = 0; at < bytes;) {
        auto* const to = reinterpret_cast<char*>(versions.data()) + at;
        const ssize_t got = ::pread(fd, to, bytes - at, static_cast<off_t>(at));
        if (got <= 0) give_up(path);
        at += static_cast<std::size_t>(got);
    }
    ::close(fd);
    return versions;
}

void save(int fd, const Versions& versions, std::size_t first, std::size_t count) {
    const auto bytes = static_cast<ssize_t>(count * sizeof(std::uint32_t));
    const auto offset = static_cast<off_t>(first * sizeof(std::uint32_t));
    if (::pwrite(fd, versions.data() + first, static_cast<std::size_t>(bytes), offset) != bytes) {
        give_up("the record");
    }
}

// One sector says by itself whose it is: the version, and words that depend on it and on the place.
// Version 0 is what nobody has written: zeroes.
void fill(std::uint64_t sector, std::uint32_t version, std::byte* out) {
    std::memset(out, 0, sector_bytes);
    if (version == 0) return;
    Prng prng(sector << 32U | version);
    replica::store_le(out, std::uint64_t{version});
    for (std::size_t at = 8; at < sector_bytes; at += 8) {
        replica::store_le(out + at, prng.next());
    }
}

// Of the blocks [first, first+count), which nobody else writes.
class Writer {
  public:
    Writer(int device, int record, std::size_t first, std::size_t count, std::uint32_t round)
        : device_(device),
          record_(record),
          first_(first),
          count_(count),
          versions_(first + count),
          next_(round << 16U),
          prng_(first + (std::uint64_t{round} << 32U)),
          buffer_(make_buffer(blocks_per_write_max)) {}

    [[noreturn]] void run() {
        std::vector<std::pair<std::size_t, std::size_t>> written;  // first, count
        for (;;) {
            const bool late = prng_.below(3) == 0;
            const std::size_t writes =
                1 + prng_.below(late ? writes_per_late_flush_max : writes_per_flush_max);
            written.clear();
            for (std::size_t i = 0; i < writes; ++i) {
                const std::size_t count = 1 + prng_.below(blocks_per_write_max);
                const std::size_t first = first_ + prng_.below(count_ - count + 1);
                const bool stable = prng_.below(16) == 0;  // FUA
                write(first, count, stable);
                if (stable) {
                    save(record_, versions_, first, count);
                } else {
                    written.emplace_back(first, count);
                }
            }
            if (::fdatasync(device_) != 0) give_up("fdatasync");
            for (const auto& [first, count] : written)
                save(record_, versions_, first, count);
        }
    }

  private:
    void write(std::size_t first, std::size_t count, bool stable) {
        ++next_;
        for (std::size_t i = 0; i < count; ++i) {
            versions_[first + i] = next_;
            for (std::size_t at = 0; at < block_bytes; at += sector_bytes) {
                const std::size_t byte = i * block_bytes + at;
                fill((first * block_bytes + byte) / sector_bytes, next_, buffer_.get() + byte);
            }
        }
        const iovec vector{buffer_.get(), count * block_bytes};
        const auto offset = static_cast<off_t>(first * block_bytes);
        if (::pwritev2(device_, &vector, 1, offset, stable ? RWF_DSYNC : 0) !=
            static_cast<ssize_t>(vector.iov_len)) {
            give_up("a write");
        }
    }

    int device_, record_;
    std::size_t first_, count_;
    Versions versions_;
    std::uint32_t next_;
    Prng prng_;
    Buffer buffer_;
};

int write(const std::string& device, const std::string& record, std::uint32_t round,
          std::size_t threads) {
    const std::size_t blocks = load(record).size();
    const std::size_t share = threads == 0 ? 0 : blocks / threads;
    if (share <= blocks_per_write_max || round == 0 || round > 32767) return 2;
    const int device_fd = open_file(device, O_RDWR | O_DIRECT);
    const int record_fd = open_file(record, O_WRONLY);
    std::vector<std::thread> running;
    for (std::size_t i = 0; i < threads; ++i) {
        running.emplace_back([=] { Writer(device_fd, record_fd, i * share, share, round).run(); });
    }
    for (std::thread& thread : running)
        thread.join();
    return 0;
}

struct Found {
    std::uint64_t recorded = 0, newer = 0, torn = 0, lost = 0;
};

// The oldest version among the sectors of a block.
std::uint32_t judge(std::uint64_t block, std::uint32_t recorded, const std::byte* seen,
                    Found& found) {
    std::array<std::byte, sector_bytes> expected{};
    std::uint32_t oldest = ~std::uint32_t{0}, newest = 0;
    bool foreign = false;
    for (std::size_t at = 0; at < block_bytes; at += sector_bytes) {
        const auto version = static_cast<std::uint32_t>(replica::load_le<std::uint64_t>(seen + at));
        fill((block * block_bytes + at) / sector_bytes, version, expected.data());
        foreign = foreign || std::memcmp(seen + at, expected.data(), sector_bytes) != 0;
        oldest = std::min(oldest, version);
        newest = std::max(newest, version);
    }
    found.recorded += recorded != 0 ? 1U : 0U;
    found.newer += newest > recorded ? 1U : 0U;
    found.torn += newest != oldest ? 1U : 0U;
    if (foreign || oldest < recorded) {
        if (++found.lost <= 10) {
            std::printf("block %" PRIu64 " has the versions %#x to %#x%s, recorded is %#x\n", block,
                        oldest, newest, foreign ? " and foreign bytes" : "", recorded);
        }
    }
    return oldest;
}

int verify(const std::string& device, const std::string& record, bool update) {
    Versions versions = load(record);
    const int fd = open_file(device, (update ? O_RDWR : O_RDONLY) | O_DIRECT);
    const Buffer buffer = make_buffer(blocks_per_read);
    Found found;
    for (std::size_t block = 0; block < versions.size(); ++block) {
        const std::size_t in_buffer = block % blocks_per_read;
        if (in_buffer == 0) {
            const auto bytes = static_cast<ssize_t>(
                std::min(blocks_per_read, versions.size() - block) * block_bytes);
            if (::pread(fd, buffer.get(), static_cast<std::size_t>(bytes),
                        static_cast<off_t>(block * block_bytes)) != bytes) {
                give_up(device);
            }
        }
        versions[block] =
            judge(block, versions[block], buffer.get() + in_buffer * block_bytes, found);
    }
    std::printf("recorded=%" PRIu64 " newer=%" PRIu64 " torn=%" PRIu64 " lost=%" PRIu64 "\n",
                found.recorded, found.newer, found.torn, found.lost);
    if (found.lost != 0) return 1;
    if (update) {  // what was read once must be read again, when it was flushed
        if (::fdatasync(fd) != 0) give_up("fdatasync");
        save(open_file(record, O_WRONLY), versions, 0, versions.size());
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    int code = 2;
    if (arguments.size() == 5 && arguments[0] == "write") {
        code =
            write(arguments[1], arguments[2], static_cast<std::uint32_t>(std::stoul(arguments[3])),
                  std::stoul(arguments[4]));
    } else if (arguments.size() >= 3 && arguments.size() <= 4 && arguments[0] == "verify") {
        const bool update = arguments.size() == 4;
        if (!update || arguments[3] == "--record-what-is-there") {
            code = verify(arguments[1], arguments[2], update);
        }
    }
    if (code == 2) {
        std::fprintf(stderr,
                     "usage: flushed_writer write DEVICE RECORD ROUND THREADS\n"
                     "       flushed_writer verify DEVICE RECORD [--record-what-is-there]\n");
    }
    return code;
}
