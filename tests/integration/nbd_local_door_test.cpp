// SPDX-License-Identifier: Apache-2.0
// The in-process door over a real disk: any length, from other threads through post(), short of
// buffers, beside an NBD server on the same volume, and at the end.
#include "engine/frontend/local_door.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/frontend/nbd_server.hpp"
#include "tests/catch.hpp"
#include "tests/integration/nbd_file_volume.hpp"

namespace replica {
namespace {

constexpr std::uint64_t mib = 1U << 20;
constexpr std::uint64_t disk_bytes = 16 * mib;

// A disk file, a volume on it and a door, on a reactor with a thread of its own.
class Bench {
  public:
    explicit Bench(FileVolumeOptions volume_options = {}, LocalDoorOptions door_options = {}) {
        char name[] = "/tmp/replica-door-XXXXXX";
        const int fd = mkstemp(name);
        REQUIRE(fd >= 0);
        REQUIRE(ftruncate(fd, static_cast<off_t>(disk_bytes)) == 0);
        close(fd);
        path_ = name;
        ReactorOptions options;
        options.arena_bytes =
            BufferPool::arena_bytes(volume_options.small_buffers, volume_options.buffers);
        auto made = Reactor::create(options);
        REQUIRE(made);
        reactor = std::move(made).value();
        auto opened = FileVolume::open(*reactor, path_, volume_options);
        REQUIRE(opened);
        volume = std::move(opened).value();
        door = std::make_unique<LocalDoor>(*reactor, *volume, door_options);
        thread_ = std::thread([this] { reactor->run(); });
    }
    ~Bench() {
        stop_door();
        reactor->stop();
        thread_.join();
        CHECK(volume->buffers_used() == 0);
        CHECK(volume->requests_in_flight() == 0);
        volume.reset();
        unlink(path_.c_str());
    }

    // On the reactor's thread; waits for it.
    template <class Task>
    void on_reactor(Task task) {
        std::promise<void> ran;
        reactor->post([&] {
            task();
            ran.set_value();
        });
        ran.get_future().wait();
    }
    void stop_door() {
        if (!door) return;
        std::promise<void> stopped;
        reactor->post([&] {
            door->stop([&] {
                door.reset();
                stopped.set_value();
            });
        });
        stopped.get_future().wait();
    }
    // A blocking call, as a thread of an application makes it.
    int call(IoKind kind, std::uint64_t offset, std::byte* memory, std::uint64_t length,
             bool fua = false) {
        LocalCall call;
        std::promise<int> result;
        call.kind = kind;
        call.fua = fua;
        call.offset = offset;
        call.length = length;
        call.memory = memory;
        call.context = &result;
        call.done = [](LocalCall& done, int error) {
            static_cast<std::promise<int>*>(done.context)->set_value(error);
        };
        reactor->post([&] { door->submit(call); });
        return result.get_future().get();
    }

    std::unique_ptr<Reactor> reactor;
    std::unique_ptr<FileVolume> volume;
    std::unique_ptr<LocalDoor> door;

  private:
    std::string path_;
    std::thread thread_;
};

// Whether all went well; assertions are for the thread of the test.
bool random_calls(Bench& bench, std::uint64_t begin, std::uint64_t end, std::uint64_t seed) {
    bool ok = true;
    Prng prng(seed);
    std::vector<std::byte> model(end - begin), buffer;
    for (int i = 0; i < 60; ++i) {
        const std::uint64_t length = 4096 * (1 + prng.below(model.size() / 4096));
        const std::uint64_t at = 4096 * prng.below((model.size() - length) / 4096 + 1);
        std::byte* const place = model.data() + at;
        buffer.assign(length, static_cast<std::byte>(prng.next()));
        switch (prng.below(4)) {
            case 0:
                ok &= bench.call(IoKind::write, begin + at, buffer.data(), length, i % 8 == 0) == 0;
                std::memcpy(place, buffer.data(), length);
                break;
            case 1:
                ok &= bench.call(IoKind::read, begin + at, buffer.data(), length) == 0;
                ok &= std::memcmp(place, buffer.data(), length) == 0;
                break;
            case 2: {
                const IoKind kind = i % 2 == 0 ? IoKind::discard : IoKind::write_zeroes;
                ok &= bench.call(kind, begin + at, nullptr, length) == 0;
                std::memset(place, 0, length);
                break;
            }
            default:
                ok &= bench.call(IoKind::flush, 0, nullptr, 0) == 0;
        }
    }
    return ok;
}

}  // namespace

TEST_CASE("Random calls of any length agree with a model") {
    for (const std::uint32_t buffers : {1U, 2U, 16U}) {
        FileVolumeOptions options;
        options.buffers = buffers;
        options.small_buffers = 1;
        Bench bench(options);
        CHECK(random_calls(bench, 0, disk_bytes, buffers));
    }
}

TEST_CASE("Several threads call at once, with fewer buffers than calls") {
    FileVolumeOptions options;
    options.buffers = 2;
    options.small_buffers = 1;
    LocalDoorOptions door;
    door.pieces_max = 5;
    Bench bench(options, door);
    std::atomic<int> good = 0;
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < 4; ++i) {
        threads.emplace_back(
            [&, i] { good += random_calls(bench, i * 4 * mib, (i + 1) * 4 * mib, 100 + i); });
    }
    for (std::thread& thread : threads)
        thread.join();
    CHECK(good == 4);
}

TEST_CASE("Calls that can not be are refused, and zero bytes are no work") {
    Bench bench;
    std::vector<std::byte> memory(8192);
    CHECK(bench.call(IoKind::write, disk_bytes, memory.data(), 4096) == EINVAL);
    CHECK(bench.call(IoKind::read, disk_bytes - 4096, memory.data(), 8192) == EINVAL);
    CHECK(bench.call(IoKind::discard, ~std::uint64_t{4095}, nullptr, 8192) == EINVAL);
    CHECK(bench.call(IoKind::read, 1, memory.data(), 4096) == EINVAL);
    CHECK(bench.call(IoKind::write, 0, memory.data(), 100) == EINVAL);
    CHECK(bench.call(IoKind::write, 0, nullptr, 4096) == EINVAL);
    CHECK(bench.call(IoKind::flush, 4096, nullptr, 0) == EINVAL);
    CHECK(bench.call(IoKind::write, disk_bytes, memory.data(), 0) == 0);
    FileVolumeOptions options;
    options.writable = false;
    Bench secondary(options);
    CHECK(secondary.call(IoKind::write, 0, memory.data(), 4096) == EROFS);
    CHECK(secondary.call(IoKind::write_zeroes, 0, nullptr, 4096) == EROFS);
    CHECK(secondary.call(IoKind::read, 0, memory.data(), 4096) == 0);
    CHECK(secondary.call(IoKind::flush, 0, nullptr, 0) == 0);
}

TEST_CASE("An error of one piece is the error of the call") {
    FileVolumeOptions options;
    options.fail_offset = 5 * mib;
    options.fail_length = 4096;
    Bench bench(options);
    std::vector<std::byte> memory(8 * mib);
    CHECK(bench.call(IoKind::write, 0, memory.data(), memory.size()) == EIO);
    CHECK(bench.call(IoKind::read, 4 * mib, memory.data(), 4 * mib) == EIO);
    CHECK(bench.call(IoKind::write, 6 * mib, memory.data(), 2 * mib) == 0);
}

TEST_CASE("The slots of submit() are bounded, and come back") {
    FileVolumeOptions volume_options;
    volume_options.delay_ns = 20 * ns_per_ms;
    LocalDoorOptions options;
    options.calls_max = 4;
    Bench bench(volume_options, options);
    std::vector<std::byte> memory(4096);
    std::atomic<int> done = 0;
    const auto count = [](void* context, int error) {
        CHECK(error == 0);
        ++*static_cast<std::atomic<int>*>(context);
    };
    bench.on_reactor([&] {
        for (int i = 0; i < 4; ++i) {
            CHECK(bench.door->submit(IoKind::read, false, 0, memory, 0, count, &done));
        }
        const Status fifth = bench.door->submit(IoKind::flush, false, 0, {}, 0, count, &done);
        REQUIRE_FALSE(fifth);
        CHECK(fifth.error().code == Errc::limit);
        CHECK(done == 0);
    });
    while (done < 4)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    bench.on_reactor(
        [&] { CHECK(bench.door->submit(IoKind::discard, true, 0, {}, 4 * mib, count, &done)); });
    while (done < 5)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST_CASE("A door that stops completes every call") {
    FileVolumeOptions volume_options;
    volume_options.delay_ns = 5 * ns_per_ms;
    volume_options.buffers = 4;
    Bench bench(volume_options);
    std::vector<std::byte> memory(disk_bytes);
    std::atomic<int> done = 0, refused = 0;
    struct Counts {
        std::atomic<int>& done;
        std::atomic<int>& refused;
    } counts{done, refused};
    std::promise<void> stopped;
    // All in one turn: no call can have ended before the door stops.
    bench.on_reactor([&] {
        for (int i = 0; i < 20; ++i) {
            const auto status = bench.door->submit(
                IoKind::write, false, 0, memory, 0,
                [](void* context, int error) {
                    auto& c = *static_cast<Counts*>(context);
                    ++c.done;
                    if (error == ESHUTDOWN) ++c.refused;
                },
                &counts);
            CHECK(status);
        }
        bench.door->stop([&] {
            bench.door.reset();
            stopped.set_value();
        });
    });
    stopped.get_future().wait();
    CHECK(done == 20);
    CHECK(refused == 20);
}

TEST_CASE("An NBD server can be started, stopped and destroyed beside the door, again and again") {
    Bench bench;
    for (int i = 0; i < 20; ++i) {
        auto server = std::make_unique<NbdServer>(*bench.reactor, *bench.volume, "r0");
        std::promise<void> stopped;
        bench.on_reactor([&] {
            const Status status = server->start("tcp:localhost:0");
            CHECK(status);
            const bool local = server->door().starts_with("tcp:127.0.0.1:") ||
                               server->door().starts_with("tcp:[::1]:");
            CHECK(local);
            CHECK(server->clients() == 0);
            NbdServer second(*bench.reactor, *bench.volume, "r0");
            const Status taken = second.start(server->door());
            REQUIRE_FALSE(taken);
            CHECK(taken.error().code == Errc::busy);
            server->stop([&] {
                server.reset();
                stopped.set_value();
            });
        });
        stopped.get_future().wait();
    }
}

}  // namespace replica
