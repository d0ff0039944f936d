// SPDX-License-Identifier: Apache-2.0
// See resync_snapshot.hpp.
#include "engine/node/resync_snapshot.hpp"

#include <fcntl.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/mapper/thin_snapshot.hpp"

namespace replica {
namespace {

constexpr const char* format =
    "replica snapshot 1\ngeneration %016" PRIX64 "\ntaken %" PRId64 "\nrestoring %d\n";

std::string note_path(const std::string& copy) { return copy + ".before-resync"; }

bool sync_directory_of(const std::string& path) {
    const std::string directory = path.substr(0, path.rfind('/'));
    const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool synced = ::fsync(fd) == 0;
    ::close(fd);
    return synced;
}

Error note_error(const std::string& path, const char* what) {
    return {Errc::io, errno,
            text_of("%s can not be %s: %s", path.c_str(), what, std::strerror(errno))};
}

}  // namespace

Result<std::optional<SnapshotNote>> load_snapshot_note(const std::string& copy) {
    const std::string path = note_path(copy);
    std::FILE* const file = std::fopen(path.c_str(), "re");
    if (file == nullptr && errno == ENOENT) return std::optional<SnapshotNote>();
    if (file == nullptr) return note_error(path, "read");
    SnapshotNote note;
    int restoring = 0;
    const int taken = std::fscanf(
        file, "replica snapshot 1 generation %16" SCNx64 " taken %20" SCNd64 " restoring %1d",
        &note.generation, &note.taken_at, &restoring);
    std::fclose(file);
    if (taken != 3) return Error{Errc::corrupt, 0, path + " is not the note of a snapshot"};
    note.restoring = restoring != 0;
    return std::optional<SnapshotNote>(note);
}

Status save_snapshot_note(const std::string& copy, const SnapshotNote& note) {
    const std::string path = note_path(copy), next = path + ".new";
    std::FILE* const file = std::fopen(next.c_str(), "we");
    if (file == nullptr) return note_error(next, "made");
    const bool written =
        std::fprintf(file, format, note.generation, note.taken_at, note.restoring ? 1 : 0) > 0 &&
        std::fflush(file) == 0 && ::fsync(::fileno(file)) == 0;
    const bool closed = std::fclose(file) == 0;
    if (!written || !closed || ::rename(next.c_str(), path.c_str()) != 0 ||
        !sync_directory_of(path)) {
        return note_error(path, "written");
    }
    return ok_status();
}

void remove_snapshot_note(const std::string& copy) { ::unlink(note_path(copy).c_str()); }

ResyncSnapshot::ResyncSnapshot(Reactor& reactor, const std::string& resource, const Log& log)
    : reactor_(reactor), resource_(resource), log_(log) {}

ResyncSnapshot::~ResyncSnapshot() {
    ASSERT(!busy_);
    if (worker_.joinable()) worker_.join();
}

void ResyncSnapshot::attached(const std::string& disk, const std::string& copy) {
    disk_ = disk;
    copy_ = copy;
    const auto note = load_snapshot_note(copy);
    if (!note) log_(LOG_WARNING, note.error().message);
    kept_ = note && note.value().has_value();
}

// `work` says whether there is a snapshot afterwards.
void ResyncSnapshot::start(std::function<bool()> work, std::function<void()> done) {
    if (busy_) {
        next_ = [this, work = std::move(work), done = std::move(done)] { start(work, done); };
        return;
    }
    busy_ = true;
    if (worker_.joinable()) worker_.join();  // it has ended
    worker_ = std::thread([this, work = std::move(work), done = std::move(done)] {
        const bool kept = work();
        reactor_.post([this, kept, done] {
            kept_ = kept;
            busy_ = false;
            if (done) done();
            if (next_ && !busy_) std::exchange(next_, nullptr)();
        });
    });
}

void ResyncSnapshot::take(std::uint64_t generation, std::function<void()> done) {
    start(
        [resource = resource_, disk = disk_, copy = copy_, generation, log = log_] {
            const auto snapshot = ThinSnapshot::of(disk, resource);
            const Status taken = snapshot ? snapshot.value().take() : snapshot.error();
            if (!taken) {
                log(LOG_ERR, "no snapshot before this resync: " + taken.error().message);
                return false;
            }
            const Status noted = save_snapshot_note(copy, {generation, std::time(nullptr), false});
            if (!noted) log(LOG_ERR, noted.error().message);
            log(LOG_NOTICE,
                "the disk as it is before this resync is kept as " + snapshot.value().name());
            return static_cast<bool>(noted);
        },
        std::move(done));
}

void ResyncSnapshot::remove(std::function<void()> done) {
    kept_ = false;  // asked for once
    start(
        [resource = resource_, disk = disk_, copy = copy_, log = log_] {
            const auto snapshot = ThinSnapshot::of(disk, resource);
            const Status removed = snapshot ? snapshot.value().remove() : snapshot.error();
            if (!removed) log(LOG_ERR, removed.error().message);
            if (removed) remove_snapshot_note(copy);
            return false;
        },
        std::move(done));
}

}  // namespace replica
