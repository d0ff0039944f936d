// SPDX-License-Identifier: Apache-2.0
// Write-ack latency of a two-node mirror (protocol C, loopback, two files) through its doors,
// beside the limit, in alternating rounds of one run: calls in the same process from another
// thread, and NBD over a Unix socket. Both nodes live in this process, each with its own reactor
// thread.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include "bench/limit.hpp"
#include "bench/nbd_client.hpp"
#include "engine/base/prng.hpp"
#include "engine/node.hpp"

using namespace replica;
using namespace replica::bench;

namespace {

constexpr std::uint64_t volume_bytes = 64U << 20;
constexpr std::uint32_t write_bytes = 4096;
constexpr unsigned depth_max = 64;

[[noreturn]] void die(const std::string& what) {
    std::fprintf(stderr, "mirror: %s\n", what.c_str());
    std::exit(1);
}
template <class T>
void require(const Result<T>& status) {
    if (!status) die(status.error().message);
}

std::uint16_t free_port() {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    if (fd < 0 || bind(fd, reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
        die("no free port");
    }
    close(fd);
    return ntohs(address.sin_port);
}

// alpha and beta with one volume between them, alpha Primary, both UpToDate.
class Mirror {
  public:
    explicit Mirror(const std::string& directory) : dir_(directory) {
        const std::array<std::uint16_t, 2> ports{free_port(), free_port()};
        for (unsigned i = 0; i < 2; ++i)
            start(i, ports);
        require(nodes_[0]->promote("r0", true));
        for (int tries = 0;; ++tries) {
            const auto status = nodes_[0]->status("r0");
            if (status && status.value().peers.at(0).disk == "UpToDate") break;
            if (tries > 3000) die("the first resync does not end");
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        }
        require(nodes_[0]->export_nbd("r0", "unix:" + socket_path()));
    }
    Node& primary() { return *nodes_[0]; }
    std::string socket_path() const { return dir_ + "/nbd.sock"; }

  private:
    void start(unsigned i, const std::array<std::uint16_t, 2>& ports) {
        const std::array<std::string, 2> names{"alpha", "beta"};
        const auto address = [&](unsigned n) { return "127.0.0.1:" + std::to_string(ports[n]); };
        NodeOptions options;
        options.name = names[i];
        options.state_dir = dir_ + "/" + names[i];
        options.listen = address(i);
        auto made = Node::create(options);
        if (!made) die(made.error().message);
        nodes_[i] = std::move(made).value();
        ResourceConfig config;
        config.name = "r0";
        config.node_id = static_cast<NodeId>(i);
        config.disk = dir_ + "/" + names[i] + ".disk";
        config.peers.push_back({names[1 - i], static_cast<NodeId>(1 - i), address(1 - i)});
        fill(config.disk);
        CreateOptions create;
        create.force = true;
        create.size_bytes = volume_bytes;
        require(nodes_[i]->create_resource(config, create));
        require(nodes_[i]->up("r0"));
    }
    // Allocated blocks, as a disk in use has them.
    static void fill(const std::string& path) {
        std::FILE* file = std::fopen(path.c_str(), "we");
        if (file == nullptr) die("can not make " + path);
        const std::vector<char> block(1U << 20, 'x');
        for (std::uint64_t at = 0; at < volume_bytes + (4U << 20); at += block.size()) {
            if (std::fwrite(block.data(), 1, block.size(), file) != block.size()) die("disk full");
        }
        std::fclose(file);
    }

    std::string dir_;
    std::array<std::unique_ptr<Node>, 2> nodes_;
};

std::uint64_t random_offset(Prng& random) {
    return random.below(volume_bytes / write_bytes) * write_bytes;
}

// One slot of the in-process door: its completion stamps the time and gives the slot back.
struct Slot {
    std::uint64_t begin = 0;
    std::atomic<std::uint64_t> end{0};
    std::counting_semaphore<depth_max>* free = nullptr;
    bool used = false;
};

Samples in_process_round(Node& node, unsigned depth, std::uint64_t duration_ns, Prng& random) {
    static std::array<std::byte, write_bytes> data{};
    std::counting_semaphore<depth_max> free(static_cast<std::ptrdiff_t>(depth));
    std::vector<Slot> slots(depth);
    Samples samples;
    const auto collect = [&](Slot& slot) {
        samples.latency_ns.push_back(slot.end.load() - slot.begin);
        slot.used = false;
    };
    const std::uint64_t begin = now_ns();
    while (now_ns() - begin < duration_ns) {
        free.acquire();
        for (Slot& slot : slots) {
            if (slot.used && slot.end.load() == 0) continue;
            if (slot.used) collect(slot);
            slot.used = true;
            slot.free = &free;
            slot.end = 0;
            slot.begin = now_ns();
            require(node.submit(
                "r0", IoKind::write, false, random_offset(random), data, write_bytes,
                [](void* context, int error) {
                    if (error != 0) die("a write failed");
                    auto* done = static_cast<Slot*>(context);
                    auto* freed = done->free;
                    done->end = now_ns();
                    freed->release();
                },
                &slot));
            break;
        }
    }
    for (unsigned i = 0; i < depth; ++i)
        free.acquire();
    for (Slot& slot : slots) {
        if (slot.used) collect(slot);
    }
    samples.elapsed_ns = now_ns() - begin;
    return samples;
}

Samples nbd_round(test::NbdClient& client, unsigned depth, std::uint64_t duration_ns,
                  Prng& random) {
    static const std::array<std::byte, write_bytes> data{};
    std::vector<std::uint64_t> begun(depth);
    Samples samples;
    const auto send = [&](std::uint64_t cookie) {
        begun[cookie] = now_ns();
        if (!client.send_write(cookie, random_offset(random), data)) die(client.why());
    };
    const std::uint64_t begin = now_ns();
    for (std::uint64_t cookie = 0; cookie < depth; ++cookie)
        send(cookie);
    for (unsigned under_way = depth; under_way > 0;) {
        const auto reply = client.receive();
        if (!reply || reply->error != 0) die("a write through NBD failed " + client.why());
        const std::uint64_t now = now_ns();
        samples.latency_ns.push_back(now - begun[reply->cookie]);
        if (now - begin < duration_ns) {
            send(reply->cookie);
        } else {
            --under_way;
        }
    }
    samples.elapsed_ns = now_ns() - begin;
    return samples;
}

double micro(std::uint64_t ns) { return static_cast<double>(ns) / 1000; }

// One row a subject, with its ratios to the limit of the same rounds.
void print_rows(unsigned depth, const std::array<Samples, 3>& all, std::FILE* json) {
    static const char* const names[] = {"limit", "in-process", "nbd"};
    static bool first = true;
    for (std::size_t i = 0; i < all.size(); ++i) {
        const double p50 = micro(all[i].percentile(0.5));
        const double p99 = micro(all[i].percentile(0.99));
        std::printf("%6u %-11s %10.1f %10.1f %10.0f %8.2f %8.2f\n", depth, names[i], p50, p99,
                    all[i].iops(), p50 / micro(all[0].percentile(0.5)),
                    all[i].iops() / all[0].iops());
        if (json == nullptr) continue;
        std::fprintf(json,
                     "%s{\"name\": \"%s\", \"depth\": %u, \"p50_us\": %.1f, "
                     "\"p99_us\": %.1f, \"iops\": %.0f}",
                     first ? "[" : ",\n ", names[i], depth, p50, p99, all[i].iops());
        first = false;
    }
}

}  // namespace

int main(int argc, char** argv) {
    unsigned rounds = 5;
    std::uint64_t round_ns = 1'000'000'000;
    std::string json;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--quick") == 0) {
            rounds = 3;
            round_ns = 200'000'000;
        } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
            json = argv[++i];
        } else {
            std::fprintf(stderr, "usage: mirror [--quick] [--json FILE]\n");
            return 2;
        }
    }
    char directory[] = "/var/tmp/replica-bench-XXXXXX";
    if (mkdtemp(directory) == nullptr) die("can not make a directory in /var/tmp");
    std::FILE* out = json.empty() ? nullptr : std::fopen(json.c_str(), "we");
    {
        auto limit = Limit::create(LimitOptions{});
        if (!limit) die(limit.error().message);
        Mirror mirror(directory);
        test::NbdClient client(30);
        if (!client.open(mirror.socket_path(), "r0")) die(client.why());
        Prng random(now_ns());
        std::printf("%6s %-11s %10s %10s %10s %8s %8s\n", "depth", "door", "p50 us", "p99 us",
                    "IOPS", "p50 x", "IOPS x");
        for (const unsigned depth : {1U, 16U, 64U}) {
            std::array<Samples, 3> all;
            for (unsigned round = 0; round < rounds; ++round) {
                auto samples = limit.value()->round(depth, round_ns);
                if (!samples) die(samples.error().message);
                all[0].add(samples.value());
                all[1].add(in_process_round(mirror.primary(), depth, round_ns, random));
                all[2].add(nbd_round(client, depth, round_ns, random));
            }
            print_rows(depth, all, out);
        }
        client.send_disconnect();
    }
    if (out != nullptr) {
        std::fputs("]\n", out);
        std::fclose(out);
    }
    const std::string clean = std::string("rm -r ") + directory;
    return std::system(clean.c_str()) == 0 ? 0 : 1;
}
