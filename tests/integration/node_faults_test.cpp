// SPDX-License-Identifier: Apache-2.0
// A node and bad input: disks it must not take, peers that are none, doors in the wrong state. Each
// is refused with a sentence that says why, and nothing is lost by it.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/crc32c.hpp"
#include "engine/format/wire.hpp"
#include "engine/node.hpp"
#include "tests/integration/node_support.hpp"

namespace replica::test {
namespace {

constexpr std::uint64_t disk_bytes = 16U << 20;

template <class T>
bool says(const Result<T>& status, const std::string& words) {
    INFO((status ? "it was accepted" : status.error().message));
    const bool found = !status && status.error().message.find(words) != std::string::npos;
    CHECK(found);
    return found;
}

TEST_CASE("a disk with something on it is not overwritten unless told to") {
    Pair pair;
    pair.create(disk_bytes);
    REQUIRE_OK(pair.a->remove_resource("r0"));
    const Status again = pair.a->create_resource(pair.config(0), {});
    CHECK(again.error().code == Errc::exists);
    CreateOptions force;
    force.force = true;
    REQUIRE_OK(pair.a->create_resource(pair.config(0), force));
    CHECK(pair.a->create_resource(pair.config(0), force).error().code == Errc::exists);
}

TEST_CASE("a disk that is too small, absent or no disk is refused") {
    Pair pair;
    ResourceConfig config = pair.config(0);
    CHECK(pair.a->create_resource(config, {}).error().code == Errc::not_found);
    Pair::make_file(config.disk, 8192);
    CHECK(pair.a->create_resource(config, {}).error().code == Errc::no_space);
    config.disk = "/dev/null";
    CHECK(pair.a->create_resource(config, {}).error().code == Errc::invalid);
    config.disk = "relative";
    CHECK(pair.a->create_resource(config, {}).error().code == Errc::invalid);
}

TEST_CASE("a configuration that contradicts itself is refused") {
    Pair pair;
    const ResourceConfig good = pair.config(0);
    const auto refused = [&](const ResourceConfig& config, const std::string& words) {
        return says(pair.a->add_resource(config), words);
    };
    ResourceConfig config = good;
    config.name = "../etc";
    refused(config, "resource name");
    config = good;
    config.node_id = 32;
    refused(config, "node id");
    config = good;
    config.peers[0].node_id = 0;
    refused(config, "own id");
    config = good;
    config.peers.push_back(config.peers[0]);
    refused(config, "two peers");
    config = good;
    config.peers[0].address = "127.0.0.1";
    refused(config, "127.0.0.1");
    config = good;
    config.peers[0].name = "alpha";
    refused(config, "own name");
    config = good;
    config.options.al_extents = 1;
    refused(config, "al-extents");
    CHECK(pair.a->resources().empty());
}

TEST_CASE("a disk is in use only once, and by its own node") {
    Pair pair;
    pair.create(disk_bytes);
    REQUIRE_OK(pair.a->up("r0"));
    ResourceConfig other = pair.config(0);
    other.name = "r1";
    REQUIRE_OK(pair.a->add_resource(other));
    CHECK(pair.a->up("r1").error().code == Errc::busy);
    // The other node's disk in place of ours.
    ResourceConfig foreign = pair.config(0);
    foreign.name = "r2";
    foreign.disk = pair.disk(1);
    REQUIRE_OK(pair.a->add_resource(foreign));
    says(pair.a->up("r2"), "node id 1");
    CHECK(pair.status(0).disk == "Inconsistent");
    CHECK(pair.a->status("r2").value().up == false);
    CHECK(pair.a->remove_resource("r0").error().code == Errc::state);
    REQUIRE_OK(pair.a->remove_resource("r2"));
}

TEST_CASE("a torn superblock is restored from its copy") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    pair.remember_size();
    REQUIRE_OK(pair.a->write("r0", 0, pattern(4096, 1), false));
    pair.down();
    // The last 4 KiB of the disk hold the superblock: half of it is lost.
    const int fd = open(pair.disk(0).c_str(), O_RDWR);
    REQUIRE(fd >= 0);
    const auto garbage = pattern(2048, 99);
    REQUIRE(pwrite(fd, garbage.data(), garbage.size(), disk_bytes - 4096 + 1024) == 2048);
    close(fd);
    pair.up();
    pair.wait_synced();
    pair.down();
    CHECK(pair.same_content());
}

TEST_CASE("a disk that is put back to what it was is refused until it is created anew") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.b->promote("r0", true));
    pair.wait_synced();
    pair.remember_size();
    // A snapshot of a disk that is attached looks like the disk after a crash, not like a clean
    // one.
    const bool while_attached = GENERATE(false, true);
    const std::string backup = pair.dir() / "backup";
    if (!while_attached) REQUIRE_OK(pair.a->down("r0"));
    std::filesystem::copy_file(pair.disk(0), backup);
    if (!while_attached) REQUIRE_OK(pair.a->up("r0"));
    pair.wait_synced();
    REQUIRE_OK(pair.b->write("r0", 0, pattern(1 << 20, 3), false));
    REQUIRE_OK(pair.a->down("r0"));
    std::filesystem::copy_file(backup, pair.disk(0),
                               std::filesystem::copy_options::overwrite_existing);
    says(pair.a->up("r0"), "an old copy of itself");
    CHECK(pair.status(0).up == false);
    // What the error says to do.
    REQUIRE_OK(pair.a->remove_resource("r0"));
    CreateOptions force;
    force.force = true;
    REQUIRE_OK(pair.a->create_resource(pair.config(0), force));
    REQUIRE_OK(pair.a->up("r0"));
    pair.wait_synced();
    pair.down();
    CHECK(pair.same_content());
}

TEST_CASE("another volume's disk in its place is refused, and nothing is written to it") {
    Pair pair;
    const auto config_of = [&](const std::string& name) {
        ResourceConfig config = pair.config(0);
        config.name = name;
        config.disk = pair.dir() / name;
        return config;
    };
    for (const std::string name : {"r0", "r1"}) {
        Pair::make_file(config_of(name).disk, disk_bytes);
        REQUIRE_OK(pair.a->create_resource(config_of(name), {}));
        REQUIRE_OK(pair.a->up(name));
        REQUIRE_OK(pair.a->promote(name, true));
        REQUIRE_OK(pair.a->write(name, 0, pattern(4096, name.back()), true));
    }
    pair.a.reset();
    const std::string kept = pair.dir() / "kept";
    std::filesystem::rename(config_of("r0").disk, kept);
    std::filesystem::rename(config_of("r1").disk, config_of("r0").disk);
    std::filesystem::copy_file(config_of("r0").disk, config_of("r1").disk);
    const auto restart = [&] {
        pair.a.reset();
        pair.start(0);
        for (const char* name : {"r0", "r1"})
            REQUIRE_OK(pair.a->add_resource(config_of(name)));
    };
    const auto first_block = [&](const std::string& name) {
        REQUIRE_OK(pair.a->promote(name, true));
        std::vector<std::byte> block(4096);
        REQUIRE_OK(pair.a->read(name, 0, block));
        return block;
    };
    restart();
    const Status refused = pair.a->up("r0");
    says(refused, "the disk of resource r1");
    CHECK(refused.error().code == Errc::state);
    CHECK(equal_files(config_of("r0").disk, config_of("r1").disk, disk_bytes));
    REQUIRE_OK(pair.a->up("r1"));
    CHECK(first_block("r1") == pattern(4096, '1'));

    SECTION("the right disk is back") {
        std::filesystem::rename(kept, config_of("r0").disk);
        REQUIRE_OK(pair.a->up("r0"));
        CHECK(first_block("r0") == pattern(4096, '0'));
    }
    SECTION("it is taken for good, with its data") {
        REQUIRE_OK(pair.a->remove_resource("r0"));
        REQUIRE_OK(pair.a->adopt_resource(config_of("r0")));
        REQUIRE_OK(pair.a->up("r0"));
        CHECK(first_block("r0") == pattern(4096, '1'));
        restart();
        REQUIRE_OK(pair.a->up("r0"));
    }
    SECTION("it is created anew") {
        REQUIRE_OK(pair.a->remove_resource("r0"));
        CreateOptions force;
        force.force = true;
        REQUIRE_OK(pair.a->create_resource(config_of("r0"), force));
        REQUIRE_OK(pair.a->up("r0"));
    }
    pair.a.reset();
}

// A file system of 8 MiB, for sparse files that promise more.
class SmallDisk {
  public:
    explicit SmallDisk(TempDir& dir) : folder_(dir / "small") {
        REQUIRE(mkdir(folder_.c_str(), 0700) == 0);
        mounted_ = mount("none", folder_.c_str(), "tmpfs", 0, "size=8m") == 0;
        if (!mounted_) WARN("SKIPPED: a small tmpfs can not be mounted here; run as root");
    }
    ~SmallDisk() {
        if (mounted_) umount2(folder_.c_str(), MNT_DETACH);
    }
    SmallDisk(const SmallDisk&) = delete;
    SmallDisk& operator=(const SmallDisk&) = delete;
    bool mounted() const { return mounted_; }
    std::string disk() const { return folder_ + "/disk"; }
    bool grow() const {
        return mount("none", folder_.c_str(), nullptr, MS_REMOUNT, "size=64m") == 0;
    }

  private:
    std::string folder_;
    bool mounted_ = false;
};

TEST_CASE("a full disk under a sparse file costs the disk, not the volume") {
    Pair pair;
    const SmallDisk small(pair.dir());
    if (!small.mounted()) return;
    ResourceConfig configs[2] = {pair.config(0), pair.config(1)};
    configs[0].disk = small.disk();
    for (int i = 0; i < 2; ++i) {
        Pair::make_file(configs[i].disk, disk_bytes);
        REQUIRE_OK(pair.node(i)->create_resource(configs[i], {}));
    }
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    const auto bytes = pattern(12 << 20, 5);
    REQUIRE_OK(pair.a->write("r0", 0, bytes, false));
    CHECK(pair.status(0).disk == "Diskless");
    CHECK(pair.status(0).why == "no space left on the backing disk: make room, then attach");
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(pair.a->read("r0", 0, back));
    CHECK(back == bytes);
    // Another process would not believe its cache either; once it is attached again that is
    // settled.
    const std::string note = pair.dir() / "state0/superblocks/r0.v0.failed";
    CHECK(std::filesystem::exists(note));
    REQUIRE(small.grow());
    REQUIRE_OK(pair.a->attach("r0"));
    pair.wait_synced();
    CHECK(pair.status(0).role == "Primary");
    CHECK_FALSE(std::filesystem::exists(note));
    pair.down();
}

TEST_CASE("a disk that can not be read is named as that, and the peer's is read") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    const auto bytes = pattern(4096, 5);
    REQUIRE_OK(pair.a->write("r0", 8 << 20, bytes, true));
    REQUIRE(truncate(pair.disk(0).c_str(), 1 << 20) == 0);
    std::vector<std::byte> back(bytes.size());
    REQUIRE_OK(pair.a->read("r0", 8 << 20, back));
    CHECK(back == bytes);
    CHECK(pair.status(0).disk == "Diskless");
    CHECK(pair.status(0).why == "the backing disk gave an I/O error");
    pair.down();
}

TEST_CASE("a full disk that is the last one says so, unlike a write beyond the end") {
    Pair pair;
    const SmallDisk small(pair.dir());
    if (!small.mounted()) return;
    ResourceConfig config = pair.config(0);
    config.disk = small.disk();
    config.options.on_io_error = OnIoError::pass_on;
    Pair::make_file(config.disk, disk_bytes);
    REQUIRE_OK(pair.a->create_resource(config, {}));
    REQUIRE_OK(pair.a->up("r0"));
    REQUIRE_OK(pair.a->promote("r0", true));
    const auto bytes = pattern(12 << 20, 5);
    const Status full = pair.a->write("r0", 0, bytes, false);
    says(full, "full");
    CHECK(full.error().code == Errc::no_space);
    CHECK(full.error().os_errno == ENOSPC);
    const Status beyond = pair.a->write("r0", pair.status(0).size_bytes, bytes, false);
    CHECK(beyond.error().code == Errc::invalid);
    CHECK(pair.status(0).disk == "UpToDate");
    pair.a.reset();
}

// A file system in a file, that holds back every write while it is frozen.
class Freezer {
  public:
    explicit Freezer(TempDir& dir) : image_(dir / "fs"), folder_(dir / "frozen") {
        Pair::make_file(image_, 64U << 20);
        REQUIRE(mkdir(folder_.c_str(), 0700) == 0);
        mounted_ = run("mkfs.ext4 -q -F " + image_) &&
                   run("mount -o loop " + image_ + " " + folder_ + " 2>/dev/null");
    }
    ~Freezer() {
        thaw();
        if (mounted_) run("umount " + folder_);
    }
    Freezer(const Freezer&) = delete;
    Freezer& operator=(const Freezer&) = delete;
    bool mounted() const { return mounted_; }
    const std::string& folder() const { return folder_; }
    void freeze() {
        frozen_ = run("fsfreeze -f " + folder_);
        REQUIRE(frozen_);
    }
    void thaw() {
        if (frozen_) run("fsfreeze -u " + folder_);
        frozen_ = false;
    }

  private:
    static bool run(const std::string& command) { return std::system(command.c_str()) == 0; }
    std::string image_, folder_;
    bool mounted_ = false, frozen_ = false;
};

TEST_CASE("what waits for a disk that hangs is seen on both sides, and ends well") {
    Pair pair;
    Freezer freezer(pair.dir());
    if (!freezer.mounted()) {
        WARN("SKIPPED: a file system can not be mounted here; run as root");
        return;
    }
    ResourceConfig configs[2] = {pair.config(0), pair.config(1)};
    configs[1].disk = freezer.folder() + "/disk";
    for (int i = 0; i < 2; ++i) {
        Pair::make_file(configs[i].disk, disk_bytes);
        REQUIRE_OK(pair.node(i)->create_resource(configs[i], {}));
    }
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    const std::uint64_t size = pair.status(0).size_bytes;
    REQUIRE_OK(pair.a->write("r0", 0, pattern(1 << 20, 1), false));
    pair.wait([&] { return pair.status(1).peers[0].unacked == 0; });
    freezer.freeze();
    std::atomic<int> error = -1;
    auto bytes = pattern(65536, 2);
    REQUIRE_OK(pair.a->submit(
        "r0", IoKind::write, false, 0, bytes, 0,
        [](void* context, int result) { *static_cast<std::atomic<int>*>(context) = result; },
        &error));
    pair.wait([&] { return pair.status(1).peers[0].unacked == 1; });
    CHECK(pair.status(0).peers[0].pending >= 1);
    CHECK(error == -1);
    freezer.thaw();
    pair.wait([&] { return error == 0; });
    pair.wait([&] { return pair.status(1).peers[0].unacked == 0; });
    pair.wait_synced();
    pair.down();
    CHECK(equal_files(configs[0].disk, configs[1].disk, size));
    REQUIRE_OK(pair.b->remove_resource("r0"));
}

// ---- the port

class Client {
  public:
    explicit Client(std::uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        REQUIRE(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    ~Client() { close(fd_); }
    void send(std::span<const std::byte> bytes) {
        [[maybe_unused]] const auto sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    }
    // The next bytes; less at the end of the connection.
    std::vector<std::byte> receive(std::size_t bytes) {
        std::vector<std::byte> next(bytes);
        const ssize_t got = recv(fd_, next.data(), bytes, MSG_WAITALL);
        next.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
        return next;
    }
    // What comes until the other side closes, or nothing more for a long time.
    std::vector<std::byte> receive_all() {
        const timeval limit{100, 0};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        std::vector<std::byte> all;
        std::byte buffer[4096];
        for (ssize_t n = 0; (n = recv(fd_, buffer, sizeof buffer, 0)) > 0;)
            all.insert(all.end(), buffer, buffer + n);
        closed_ = recv(fd_, buffer, sizeof buffer, 0) == 0 || errno != EAGAIN;
        return all;
    }
    bool closed() const { return closed_; }

  private:
    int fd_;
    bool closed_ = false;
};

constexpr std::size_t hello_bytes = wire_header_bytes + hello_payload_bytes;

std::vector<std::byte> hello_frame(const std::string& resource, NodeId from, NodeId to,
                                   std::uint64_t session, Stream stream = Stream::bulk,
                                   std::uint16_t version = wire_version_max) {
    HelloPayload hello;
    hello.version_min = hello.version_max = version;
    hello.from = from;
    hello.to = to;
    hello.session = session;
    hello.incarnation = 1;
    hello.stream = stream;
    hello.journal_entries = 64;
    hello.io_bytes_max = io_bytes_max;
    std::copy(resource.begin(), resource.end(), hello.resource.begin());
    std::vector<std::byte> frame(hello_bytes);
    const auto payload = std::span(frame).subspan<wire_header_bytes, hello_payload_bytes>();
    encode_hello(hello, payload);
    Message message;
    message.type = MessageType::hello;
    message.payload_bytes = hello_payload_bytes;
    encode_header(message, crc32c(payload), std::span(frame).first<wire_header_bytes>());
    return frame;
}

std::string reject_text(const std::vector<std::byte>& frame) {
    if (frame.size() < wire_header_bytes) return "";
    const auto header = std::span(frame).first<wire_header_bytes>();
    const auto message = decode_header(header);
    if (!message || message.value().type != MessageType::reject) return "";
    return {reinterpret_cast<const char*>(frame.data()) + wire_header_bytes,
            frame.size() - wire_header_bytes};
}

TEST_CASE("garbage on the port is dropped and the mirror does not notice") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    pair.remember_size();
    {
        Client garbage(pair.port(1));
        garbage.send(pattern(4096, 1));
        garbage.receive_all();
        CHECK(garbage.closed());
    }
    {
        // A right header with a hello that is not what the header says.
        auto frame = hello_frame("r0", 0, 1, 5);
        frame.back() ^= std::byte{1};
        Client damaged(pair.port(1));
        damaged.send(frame);
        damaged.receive_all();
        CHECK(damaged.closed());
    }
    std::vector<std::unique_ptr<Client>> crowd;
    for (int i = 0; i < 100; ++i)
        crowd.push_back(std::make_unique<Client>(pair.port(1)));
    REQUIRE_OK(pair.a->write("r0", 0, pattern(1 << 20, 8), false));
    crowd.clear();
    REQUIRE_OK(pair.a->disconnect("r0", ""));
    REQUIRE_OK(pair.a->connect("r0", "", false));
    pair.wait_synced();
    pair.down();
    CHECK(pair.same_content());
}

TEST_CASE("a hello that can not be is answered with the reason") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    const auto answer = [&](const std::vector<std::byte>& frame) {
        Client client(pair.port(1));
        client.send(frame);
        const std::string text = reject_text(client.receive_all());
        CHECK(client.closed());
        return text;
    };
    CHECK(answer(hello_frame("nope", 0, 1, 5)).find("has no resource of this name") !=
          std::string::npos);
    CHECK(answer(hello_frame("r0", 1, 1, 5)).find("one node id") != std::string::npos);
    CHECK(answer(hello_frame("r0", 0, 7, 5)).find("another node id") != std::string::npos);
    CHECK(answer(hello_frame("r0", 9, 1, 5)).find("not configured") != std::string::npos);
    const auto newer = hello_frame("r0", 0, 1, 5, Stream::bulk, wire_version_max + 1);
    CHECK(answer(newer).find("no protocol version in common") != std::string::npos);
    REQUIRE_OK(pair.b->down("r0"));
    CHECK(answer(hello_frame("r0", 0, 1, 5)) == "the resource is down on beta");
}

TEST_CASE("a connection that stalls half-way is dropped after 5 s") {
    Pair pair;
    pair.create(disk_bytes);
    REQUIRE_OK(pair.b->up("r0"));
    Client silent(pair.port(1)), half(pair.port(1)), single(pair.port(1));
    const auto hello = hello_frame("r0", 0, 1, 5);
    half.send(std::span(hello).first(70));
    single.send(hello_frame("r0", 0, 1, 6));  // whose other stream never comes
    CHECK(silent.receive_all().empty());
    CHECK(silent.closed());
    CHECK(half.receive_all().empty());
    CHECK(half.closed());
    CHECK(reject_text(single.receive_all()).find("did not come") != std::string::npos);
    CHECK(single.closed());
}

TEST_CASE("a damaged frame on a link ends the connection, which is made anew") {
    // A peer that is none: it takes both streams of beta's place, then sends garbage.
    Pair pair;
    pair.create(disk_bytes);
    REQUIRE_OK(pair.b->up("r0"));
    {
        Client bulk(pair.port(1)), control(pair.port(1));
        bulk.send(hello_frame("r0", 0, 1, 77, Stream::bulk));
        control.send(hello_frame("r0", 0, 1, 77, Stream::control));
        bulk.send(pattern(64, 5));
        bulk.receive_all();
        CHECK(bulk.closed());
        // If the garbage came before the link was made, its other half waits for 5 s.
        control.receive_all();
        CHECK(control.closed());
    }
    REQUIRE_OK(pair.a->up("r0"));
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
}

TEST_CASE(
    "why a peer is not connected is the last reason, on the side that accepts and the other") {
    Pair pair;
    pair.create(disk_bytes);
    REQUIRE_OK(pair.b->up("r0"));
    const auto why = [&](int i, const std::string& words) {
        INFO(words);
        pair.wait([&] { return pair.status(i).peers[0].why.find(words) != std::string::npos; });
    };
    // The connection is lost: a peer that is none says hello on both streams, then garbage.
    std::optional<Client> bulk(pair.port(1)), control(pair.port(1));
    bulk->send(hello_frame("r0", 0, 1, 77, Stream::bulk));
    control->send(hello_frame("r0", 0, 1, 77, Stream::control));
    for (auto& stream : {&bulk, &control})  // both are answered: the link is made
        REQUIRE((*stream)->receive(hello_bytes).size() == hello_bytes);
    bulk->send(pattern(64, 5));
    why(1, "damaged or foreign frame");
    // Then the right one comes, and is refused.
    ResourceOptions other = Pair::fast_options();
    other.protocol = Protocol::a;
    other.request_timeout_ms = 1000;
    REQUIRE_OK(pair.a->change_options("r0", other));
    REQUIRE_OK(pair.a->up("r0"));
    why(1, "different replication protocols");
    why(0, "different replication protocols");

    // Nobody is there; then somebody who says nothing.
    pair.b.reset();
    why(0, "refused");
    const int deaf = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int yes = 1;
    setsockopt(deaf, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(pair.port(1));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(bind(deaf, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(deaf, 16) == 0);
    why(0, "did not answer the hello");
    close(deaf);
}

// ---- doors

int connect_unix(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    return fd;
}

TEST_CASE("a disk that is configured for a resource that is down is not taken by another") {
    Pair pair;
    pair.create(disk_bytes);
    ResourceConfig other = pair.config(0);
    other.name = "r1";
    CreateOptions force;
    force.force = true;
    CHECK(says(pair.a->create_resource(other, force), "is configured for r0: remove that first"));
    const std::string link = pair.dir() / "link";
    REQUIRE(symlink(other.disk.c_str(), link.c_str()) == 0);
    other.disk = link;
    CHECK(says(pair.a->create_resource(other, force), "is configured for r0"));
    CHECK(says(pair.a->adopt_resource(other), "is configured for r0"));
    other.metadata = pair.config(0).disk;
    other.disk = pair.dir() / "no-such-disk";
    CHECK(says(pair.a->adopt_resource(other), "is configured for r0"));
    pair.up();  // its metadata is as it was
    REQUIRE_OK(pair.a->promote("r0", true));
}

TEST_CASE("metadata whose slots belong to other node ids is not said to be too small") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    REQUIRE_OK(pair.a->down("r0"));
    REQUIRE_OK(pair.a->remove_resource("r0"));
    ResourceConfig config = pair.config(0);
    config.peers[0].node_id = 2;
    REQUIRE_OK(pair.a->adopt_resource(config));
    CHECK(says(pair.a->up("r0"), "node id 1: correct the node ids"));
}

TEST_CASE("doors open on a primary only, and a client keeps it one") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    const std::string path = pair.dir() / "door";
    const std::string door = "unix:" + path;
    says(pair.a->export_nbd("r0", door), "promote");
    REQUIRE_OK(pair.a->promote("r0", true));
    REQUIRE_OK(pair.a->export_nbd("r0", door));
    CHECK(pair.a->export_nbd("r0", door).error().code == Errc::exists);
    const auto chosen = pair.a->export_nbd("r0", "tcp:127.0.0.1:0");
    REQUIRE_OK(chosen);
    CHECK(chosen.value().find("tcp:127.0.0.1:") == 0);
    CHECK(chosen.value() == pair.status(0).doors[1]);
    CHECK(pair.status(0).doors.size() == 2);
    CHECK(pair.a->unexport("r0", "unix:/nowhere").error().code == Errc::not_found);
    const int client = connect_unix(path);
    std::byte greeting[18];
    REQUIRE(recv(client, greeting, sizeof greeting, MSG_WAITALL) == sizeof greeting);
    const Status busy = pair.a->demote("r0");
    REQUIRE(!busy);
    CHECK(busy.error().code == Errc::busy);
    CHECK(pair.status(0).role == "Primary");
    says(pair.a->unexport("r0", door), "1 client(s) at unix:");
    says(pair.a->unexport("r0", ""), "1 client(s) at unix:");
    REQUIRE_OK(pair.a->unexport("r0", chosen.value()));  // the other one has none
    REQUIRE_OK(pair.a->unexport("r0", door, true));
    CHECK(recv(client, greeting, sizeof greeting, 0) <= 0);
    close(client);
    CHECK(access(path.c_str(), F_OK) != 0);
    REQUIRE_OK(pair.a->demote("r0"));
    CHECK(pair.status(0).doors.empty());
}

// As a DRBD user expects: it is Secondary already.
TEST_CASE("a Secondary that is demoted keeps its read-only doors, and their clients") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    const std::string path = pair.dir() / "door";
    REQUIRE_OK(pair.b->export_nbd("r0", "unix:" + path, true));
    const int client = connect_unix(path);
    std::byte greeting[18];
    REQUIRE(recv(client, greeting, sizeof greeting, MSG_WAITALL) == sizeof greeting);
    REQUIRE_OK(pair.b->demote("r0"));
    CHECK(pair.status(1).doors.size() == 1);
    CHECK(recv(client, greeting, sizeof greeting, MSG_DONTWAIT) == -1);
    CHECK(errno == EAGAIN);  // it is still connected
    close(client);
    // That of a Primary closes them all.
    REQUIRE_OK(pair.a->export_nbd("r0", "unix:" + path + "2", true));
    REQUIRE_OK(pair.a->demote("r0"));
    CHECK(pair.status(0).doors.empty());
    REQUIRE_OK(pair.b->demote("r0"));
    CHECK(pair.status(1).doors.size() == 1);
}

TEST_CASE("down closes a door with its clients by force only") {
    Pair pair;
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    const std::string path = pair.dir() / "door";
    REQUIRE_OK(pair.a->export_nbd("r0", "unix:" + path));
    const int client = connect_unix(path);
    std::byte greeting[18];  // the connection has been accepted
    REQUIRE(recv(client, greeting, sizeof greeting, MSG_WAITALL) == sizeof greeting);
    says(pair.a->down("r0"), "1 client(s) at unix:");
    CHECK(pair.status(0).role == "Primary");
    CHECK(pair.status(0).doors.size() == 1);
    REQUIRE_OK(pair.a->down("r0", true));
    CHECK(pair.status(0).up == false);
    close(client);
    CHECK(pair.a->write("r0", 0, pattern(512, 1), false).error().code == Errc::cancelled);
    CHECK(pair.a->promote("r0", false).error().code == Errc::state);
    REQUIRE_OK(pair.a->down("r0"));
}

TEST_CASE("events tell of what changes, in order") {
    Pair pair;
    std::mutex mutex;
    std::vector<Event> events;
    const auto token = pair.a->subscribe([&](const Event& event) {
        const std::lock_guard lock(mutex);
        events.push_back(event);
    });
    pair.create(disk_bytes);
    pair.up();
    REQUIRE_OK(pair.a->promote("r0", true));
    pair.wait_synced();
    REQUIRE_OK(pair.a->down("r0"));
    const auto seen = [&](const std::string& kind, const std::string& detail) {
        const std::lock_guard lock(mutex);
        return std::any_of(events.begin(), events.end(), [&](const Event& event) {
            return event.resource == "r0" && event.kind == kind &&
                   event.detail.find(detail) != std::string::npos;
        });
    };
    CHECK(wait_until([&] { return seen("connection", "connection:StandAlone"); }));
    CHECK(seen("resource", ""));
    CHECK(seen("resource", "role:Primary"));
    CHECK(seen("device", "disk:UpToDate"));
    CHECK(seen("connection", "connection:Connected"));
    CHECK(seen("peer-device", "replication:SyncSource"));
    CHECK(seen("peer-device", "disk:UpToDate replication:Established"));
    pair.a->unsubscribe(token);
    const std::lock_guard lock(mutex);
    for (std::size_t i = 1; i < events.size(); ++i)
        CHECK(events[i].seq > events[i - 1].seq);
}

TEST_CASE("a listener may call the node until the last event, and goes when it is told to") {
    Pair pair;
    pair.create(disk_bytes);
    Node* const node = pair.a.get();
    std::atomic<int> calls = 0, calls_of_gone = 0;
    std::atomic<bool> has_gone = false;
    const auto gone = pair.a->subscribe([&](const Event&) { ++calls_of_gone; });
    // Holds up all further events until the first one has gone.
    pair.a->subscribe([&](const Event& event) {
        static_cast<void>(node->status(event.resource));
        ++calls;
        wait_until([&] { return has_gone.load(); });
    });
    REQUIRE_OK(pair.a->up("r0"));
    REQUIRE_OK(pair.a->promote("r0", true));
    REQUIRE(wait_until([&] { return calls == 1; }));
    pair.a->unsubscribe(gone);  // while more events wait: not for all of them
    has_gone = true;
    pair.a.reset();  // with events still to be heard, and who hears them asks it
    CHECK(calls > 1);
    CHECK(calls_of_gone == 1);
}

TEST_CASE("a listener that has been told to go is not called any more") {
    Pair pair;
    pair.create(disk_bytes);
    std::atomic<bool> begun = false, runs = false;
    const auto token = pair.a->subscribe([&](const Event&) {
        runs = begun = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        runs = false;
    });
    REQUIRE_OK(pair.a->up("r0"));
    REQUIRE(wait_until([&] { return begun.load(); }));
    pair.a->unsubscribe(token);
    CHECK_FALSE(runs);
}

}  // namespace
}  // namespace replica::test
