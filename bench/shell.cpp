// SPDX-License-Identifier: Apache-2.0
// What engine/io adds to the limit: the same mirrored write through Reactor, BlockFile, FrameSocket
// and BufferPool on both ends, still without any of the core. Rounds alternate with the limit's.
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench/limit.hpp"
#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "engine/io/address.hpp"
#include "engine/io/block_file.hpp"
#include "engine/io/buffer_pool.hpp"
#include "engine/io/frame_socket.hpp"

using namespace replica;
using namespace replica::bench;

namespace {

constexpr std::uint32_t write_bytes = 4096;
constexpr std::uint64_t file_bytes = 64U << 20;
constexpr unsigned depth_max = 64;

template <class T>
T need(Result<T> result) {
    if (!result) {
        std::fprintf(stderr, "shell: %s\n", result.error().message.c_str());
        std::exit(1);
    }
    return std::move(result).value();
}

using Header = std::array<std::byte, frame_header_bytes>;

// What both ends have.
struct Side : FrameOwner {
    std::unique_ptr<Reactor> reactor;
    std::unique_ptr<BufferPool> pool;
    std::unique_ptr<BlockFile> file;
    std::unique_ptr<FrameSocket> socket;

    explicit Side(const std::string& path) {
        ReactorOptions options;
        options.arena_bytes = BufferPool::arena_bytes(4 * depth_max, 4);
        reactor = need(Reactor::create(options));
        pool = need(BufferPool::create(*reactor, 4 * depth_max, 4));
        file = need(BlockFile::open(*reactor, path, {}));
    }
    virtual ~Side() = default;
    void connect(int fd) {
        configure_tcp(fd, {});
        socket = std::make_unique<FrameSocket>(*reactor, fd, FrameSocketOptions{}, *this);
        socket->start();
    }
    void on_payload_dropped(std::byte* buffer) override { pool->release(buffer); }
    void on_closed(int) override {
        socket.reset();
        reactor->stop();
    }
};

struct Mirror final : Side {
    struct Item {
        Mirror* mirror = nullptr;
        DiskOp write;
        Header header{};
        std::byte* buffer = nullptr;
    };
    std::vector<Item> items{4 * depth_max};
    std::vector<Item*> free;

    explicit Mirror(const std::string& path) : Side(path) {
        for (Item& item : items) {
            item.mirror = this;
            item.write.context = &item;
            item.write.done = [](DiskOp& op, int error) {
                auto* self = static_cast<Item*>(op.context);
                ASSERT(error == 0);
                Mirror& m = *self->mirror;
                m.pool->release(self->buffer);
                if (m.socket) ASSERT(m.socket->send(FrameHeader(self->header), {}, {}));
                m.free.push_back(self);
            };
            free.push_back(&item);
        }
    }
    std::int64_t payload_bytes(FrameHeader) override { return write_bytes; }
    std::byte* payload_buffer(FrameHeader, std::size_t bytes) override {
        return pool->acquire(bytes);
    }
    void on_frame(FrameHeader header, std::span<std::byte> payload) override {
        Item* item = free.back();
        free.pop_back();
        std::memcpy(item->header.data(), header.data(), header.size());
        item->buffer = payload.data();
        file->write(item->write, payload, load_le<std::uint64_t>(header.data() + 8), false);
    }
};

struct Writer final : Side {
    struct Item {
        Writer* writer = nullptr;
        DiskOp write;
        std::byte* buffer = nullptr;
        std::uint64_t started_ns = 0;
        unsigned waits_for = 0;
    };
    std::vector<Item> items{depth_max};
    Prng random{1};
    std::uint64_t end_ns = 0;
    unsigned under_way = 0;
    Samples samples;

    explicit Writer(const std::string& path) : Side(path) {
        for (Item& item : items) {
            item.writer = this;
            item.buffer = pool->acquire(write_bytes);
            item.write.context = &item;
            item.write.done = [](DiskOp& op, int error) {
                ASSERT(error == 0);
                auto* self = static_cast<Item*>(op.context);
                self->writer->done_one(*self);
            };
        }
    }
    void start(Item& item, std::uint64_t now) {
        const std::uint64_t offset = random.below(file_bytes / write_bytes) * write_bytes;
        Header header{};
        store_le<std::uint64_t>(header.data(), static_cast<std::uint64_t>(&item - items.data()));
        store_le(header.data() + 8, offset);
        item.started_ns = now;
        item.waits_for = 2;
        under_way += 1;
        const std::span<std::byte> payload(item.buffer, write_bytes);
        file->write(item.write, payload, offset, false);
        ASSERT(socket->send(FrameHeader(header), payload, {}));
    }
    void done_one(Item& item) {
        if (--item.waits_for > 0) return;
        const std::uint64_t now = now_ns();
        samples.latency_ns.push_back(now - item.started_ns);
        under_way -= 1;
        if (now < end_ns) return start(item, now);
        if (under_way == 0) socket->close(ESHUTDOWN);
    }
    std::int64_t payload_bytes(FrameHeader) override { return 0; }
    std::byte* payload_buffer(FrameHeader, std::size_t) override { return nullptr; }
    void on_frame(FrameHeader header, std::span<std::byte>) override {
        done_one(items[load_le<std::uint64_t>(header.data())]);
    }
};

void loopback_pair(int fds[2]) {
    const auto addresses = need(resolve(Endpoint{{}, "127.0.0.1", 0}, true));
    const int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT(bind(listening, addresses[0].get(), addresses[0].length) == 0 &&
           listen(listening, 1) == 0);
    const SocketAddress bound = local_address(listening);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT(connect(fds[0], bound.get(), bound.length) == 0);
    fds[1] = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
    ASSERT(fds[1] >= 0);
    close(listening);
}

// Written in full, as the limit does it: no round pays for allocation.
std::string make_file(const std::string& directory, const char* name) {
    const std::string path = directory + "/" + name;
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    constexpr std::size_t chunk = 1U << 20;
    const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(4096, chunk), std::free);
    std::memset(memory.get(), 0x5a, chunk);
    bool ok = fd >= 0;
    for (std::uint64_t at = 0; ok && at < file_bytes; at += chunk) {
        ok = pwrite(fd, memory.get(), chunk, static_cast<off_t>(at)) == static_cast<ssize_t>(chunk);
    }
    if (!ok || fsync(fd) != 0 || close(fd) != 0) {
        std::fprintf(stderr, "shell: can not make %s: %s\n", path.c_str(), std::strerror(errno));
        std::exit(1);
    }
    return path;
}

Samples shell_round(Writer& writer, Mirror& mirror, unsigned depth, std::uint64_t duration_ns) {
    int fds[2];
    loopback_pair(fds);
    std::thread far([&] {
        mirror.connect(fds[1]);
        mirror.reactor->run();
    });
    writer.connect(fds[0]);
    writer.samples = {};
    const std::uint64_t begin = now_ns();
    writer.end_ns = begin + duration_ns;
    writer.reactor->post([&] {
        for (unsigned i = 0; i < depth; ++i)
            writer.start(writer.items[i], now_ns());
    });
    writer.reactor->run();
    writer.samples.elapsed_ns = now_ns() - begin;
    far.join();
    return writer.samples;
}

struct Row {
    unsigned depth;
    Samples limit, shell;
};

double us(const Samples& samples, double fraction) {
    return static_cast<double>(samples.percentile(fraction)) / 1000;
}

void print(const std::vector<Row>& rows) {
    std::printf("%6s %12s %12s %6s %12s %12s %6s %11s %11s %6s\n", "depth", "limit p50us",
                "shell p50us", "ratio", "limit p99us", "shell p99us", "ratio", "limit IOPS",
                "shell IOPS", "ratio");
    for (const Row& row : rows) {
        const double p50[] = {us(row.limit, 0.5), us(row.shell, 0.5)};
        const double p99[] = {us(row.limit, 0.99), us(row.shell, 0.99)};
        const double iops[] = {row.limit.iops(), row.shell.iops()};
        std::printf("%6u %12.1f %12.1f %6.2f %12.1f %12.1f %6.2f %11.0f %11.0f %6.2f\n", row.depth,
                    p50[0], p50[1], p50[1] / p50[0], p99[0], p99[1], p99[1] / p99[0], iops[0],
                    iops[1], iops[1] / iops[0]);
    }
}

bool write_json(const char* path, const std::vector<Row>& rows) {
    std::FILE* file = std::fopen(path, "we");
    if (file == nullptr) return false;
    const char* separator = "[";
    for (const Row& row : rows) {
        for (const auto& [name, samples] :
             {std::pair{"limit", &row.limit}, {"shell", &row.shell}}) {
            std::fprintf(file,
                         "%s{\"name\": \"%s\", \"depth\": %u, \"bytes\": %u, \"p50_us\": %.1f, "
                         "\"p99_us\": %.1f, \"iops\": %.0f, \"writes\": %zu}",
                         separator, name, row.depth, write_bytes, us(*samples, 0.5),
                         us(*samples, 0.99), samples->iops(), samples->latency_ns.size());
            separator = ",\n ";
        }
    }
    std::fputs("]\n", file);
    return std::fclose(file) == 0;
}

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
            std::puts("usage: shell [--quick] [--json FILE]");
            return 2;
        }
    }
    char directory[] = "/var/tmp/replica-shell-XXXXXX";
    if (mkdtemp(directory) == nullptr) return 1;
    const std::string here = make_file(directory, "here"), there = make_file(directory, "there");
    const auto limit = need(Limit::create({}));
    const std::uint64_t duration_ns = quick ? 200'000'000 : 500'000'000;
    std::vector<Row> rows{{1, {}, {}}, {16, {}, {}}, {64, {}, {}}};
    for (int round = 0; round < (quick ? 3 : 10); ++round) {
        for (Row& row : rows) {
            row.limit.add(need(limit->round(row.depth, duration_ns)));
            // Reactors belong to the thread that runs them first: new ones for each round.
            Writer writer(here);
            Mirror mirror(there);
            row.shell.add(shell_round(writer, mirror, row.depth, duration_ns));
        }
    }
    unlink(here.c_str());
    unlink(there.c_str());
    rmdir(directory);
    print(rows);
    if (json != nullptr && !write_json(json, rows)) {
        std::fprintf(stderr, "shell: can not write %s: %s\n", json, std::strerror(errno));
        return 1;
    }
    return 0;
}
