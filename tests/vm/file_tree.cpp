// SPDX-License-Identifier: Apache-2.0
// A load for file systems whose every step is known: makes, writes, punches, truncates, links,
// renames, removes and syncs files and directories, drawn from a seed, so that `verify` can follow
// it and say what has to be there.
//
//   file_tree run    DIR RECORD SEED [SECONDS [STEPS]]
//   file_tree verify DIR RECORD
//
// A run goes on until SIGTERM or for so long; after STEPS it ends as if it was killed. Exit status
// 1: an error; something is wrong.
// RECORD lies outside of the file system and tells how far a run has come. After one that ended
// (SIGTERM, SECONDS) the tree is exactly as it was left. After one that did not, a loss of power
// lies between, and this is held to what journaling file systems (ext4, XFS) promise: names, links
// and directories are those of one moment, not before the last one that was synced; each sector of
// a file holds what it had when the file was synced last, or something newer.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/base/endian.hpp"
#include "engine/base/prng.hpp"
#include "engine/base/units.hpp"

namespace {

using replica::Prng;
using replica::sector_bytes;
using Step = std::uint32_t;  // the number of a step; also the version of what it wrote. 0: zeroes

constexpr std::size_t sectors_max = 512;  // of a file
constexpr std::size_t sectors_per_write_max = 128;
constexpr std::size_t directories = 5, names_per_directory = 10;  // directory 0 is DIR itself
constexpr std::size_t names_max = directories * names_per_directory;
constexpr std::uint64_t record_magic = 0x656572745f656c69;

using FileId = Step;  // the step that made it; 0: none
struct Names {
    std::array<FileId, names_max> file{};
    std::array<bool, directories> made{true};
    bool operator==(const Names& other) const { return file == other.file && made == other.made; }
};

struct File {
    std::vector<Step> now;  // the version of each sector; its length is the size
    // What may be found after a loss of power: since the file was synced.
    std::size_t size_min = 0, size_max = 0;
    std::array<std::vector<Step>, sectors_max> maybe;
    Step named = 0;  // the last step that changed a name of it

    File() {
        for (auto& versions : maybe)
            versions = {0};
    }
    void synced() {
        size_min = size_max = now.size();
        for (std::size_t i = 0; i < sectors_max; ++i)
            maybe[i] = {i < now.size() ? now[i] : 0};
    }
    void resize(std::size_t size) {
        for (std::size_t i = std::min(size, now.size()); i < now.size(); ++i)
            maybe[i].push_back(0);
        now.resize(size);
        size_min = std::min(size_min, size);
        size_max = std::max(size_max, size);
    }
    void put(std::size_t first, std::size_t count, Step version) {
        if (version != 0 && first + count > now.size()) resize(first + count);
        for (std::size_t i = first; i < std::min(first + count, now.size()); ++i) {
            now[i] = version;
            maybe[i].push_back(version);
        }
    }
};

enum class Verb {
    make,
    write,
    punch,
    truncate,
    link,
    rename,
    unlink,
    mkdir,
    rmdir,
    fsync,
    fdatasync,
    syncfs
};

struct Operation {
    Verb verb = Verb::syncfs;
    std::size_t name = 0, other = 0;   // mkdir, rmdir: the directory
    std::size_t first = 0, count = 0;  // sectors; truncate: count is the new size
    bool syncs() const { return verb >= Verb::fsync; }
};

// What the file system should hold, and what comes next: nothing but the seed decides.
class Model {
  public:
    explicit Model(std::uint64_t seed) : prng_(seed) {}

    Operation next() {
        for (;;) {
            Operation operation;
            if (draw(operation)) return operation;
        }
    }
    void apply(const Operation& operation);

    Step step = 0;     // of the last operation that was applied
    Step durable = 0;  // names are not older than after this step
    Names names;
    std::map<FileId, File> files;  // also some that have no name any more

  private:
    bool draw(Operation& operation);
    bool exists(std::size_t name) const { return names.file[name] != 0; }
    bool possible(std::size_t name) const { return names.made[name / names_per_directory]; }
    void rename(const Operation& operation);

    Prng prng_;
};

// False: what was drawn is not possible now.
bool Model::draw(Operation& o) {
    static constexpr std::array<Verb, 24> weights = {
        Verb::make,     Verb::make,     Verb::make,  Verb::write,  Verb::write,  Verb::write,
        Verb::write,    Verb::write,    Verb::write, Verb::write,  Verb::write,  Verb::punch,
        Verb::truncate, Verb::truncate, Verb::link,  Verb::rename, Verb::rename, Verb::unlink,
        Verb::unlink,   Verb::mkdir,    Verb::rmdir, Verb::fsync,  Verb::fsync,  Verb::fdatasync};
    o.verb = prng_.below(60) == 0 ? Verb::syncfs : weights[prng_.below(weights.size())];
    o.name = prng_.below(names_max);
    o.other = prng_.below(names_max);
    o.count = 1 + prng_.below(sectors_per_write_max);
    o.first = prng_.below(sectors_max - o.count + 1);
    switch (o.verb) {
        case Verb::make:
            return !exists(o.name) && possible(o.name);
        case Verb::truncate:
            o.count = prng_.below(sectors_max + 1);
            return exists(o.name);
        case Verb::write:
        case Verb::punch:
        case Verb::unlink:
        case Verb::fsync:
        case Verb::fdatasync:
            return exists(o.name);
        case Verb::link:
            return exists(o.name) && !exists(o.other) && possible(o.other);
        case Verb::rename:  // of two links of one file nothing would be renamed
            return exists(o.name) && possible(o.other) && names.file[o.name] != names.file[o.other];
        case Verb::mkdir:
        case Verb::rmdir: {
            o.name = 1 + o.name % (directories - 1);
            const auto begin = names.file.begin() + static_cast<long>(o.name * names_per_directory);
            if (o.verb == Verb::mkdir) return !names.made[o.name];
            return names.made[o.name] && std::all_of(begin, begin + names_per_directory,
                                                     [](FileId file) { return file == 0; });
        }
        case Verb::syncfs:
            return true;
    }
    return false;
}

void Model::rename(const Operation& o) {
    if (exists(o.other)) files[names.file[o.other]].named = step;
    files[names.file[o.name]].named = step;
    names.file[o.other] = names.file[o.name];
    names.file[o.name] = 0;
}

void Model::apply(const Operation& o) {
    ++step;
    File* const file = o.verb < Verb::mkdir || o.verb == Verb::fsync || o.verb == Verb::fdatasync
                           ? &files[o.verb == Verb::make ? step : names.file[o.name]]
                           : nullptr;
    switch (o.verb) {
        case Verb::make:
            names.file[o.name] = file->named = step;
            return;
        case Verb::write:
            return file->put(o.first, o.count, step);
        case Verb::punch:
            return file->put(o.first, o.count, 0);
        case Verb::truncate:
            return file->resize(o.count);
        case Verb::link:
            names.file[o.other] = names.file[o.name];
            file->named = step;
            return;
        case Verb::rename:
            return rename(o);
        case Verb::unlink:
            names.file[o.name] = 0;
            file->named = step;
            return;
        case Verb::mkdir:
        case Verb::rmdir:
            names.made[o.name] = o.verb == Verb::mkdir;
            return;
        case Verb::fsync:  // the journal is in order: what came before this name is there, too
            file->synced();
            durable = std::max(durable, file->named);
            return;
        case Verb::fdatasync:
            return file->synced();
        case Verb::syncfs:
            durable = step;
            for (auto at = files.begin(); at != files.end();) {
                const bool named = std::count(names.file.begin(), names.file.end(), at->first) != 0;
                at->second.synced();
                at = named ? std::next(at) : files.erase(at);
            }
            return;
    }
}

// A sector says which file and step it is of, and where it belongs.
void fill(FileId file, std::size_t sector, Step version, std::byte* out) {
    std::memset(out, 0, sector_bytes);
    if (version == 0) return;
    Prng prng((std::uint64_t{file} << 32U | version) * 1024 + sector);
    replica::store_le(out, std::uint64_t{version});
    for (std::size_t at = 8; at < sector_bytes; at += 8)
        replica::store_le(out + at, prng.next());
}

std::string directory_name(std::size_t directory) { return "d" + std::to_string(directory); }
std::string path_of(std::size_t name) {
    const std::string leaf = "f" + std::to_string(name % names_per_directory);
    const std::size_t directory = name / names_per_directory;
    return directory == 0 ? leaf : directory_name(directory) + "/" + leaf;
}

[[noreturn]] void give_up(const std::string& what) {
    std::fprintf(stderr, "file_tree: %s: %s\n", what.c_str(), std::strerror(errno));
    std::_Exit(1);
}
void need(bool good, const char* what, const Operation& o, Step step) {
    if (!good) give_up("step " + std::to_string(step) + ", " + what + " of " + path_of(o.name));
}

// One operation on an open file.
void work_on(int fd, const Operation& o, FileId file, Step step) {
    const auto offset = static_cast<off_t>(o.first * sector_bytes);
    const auto bytes = static_cast<off_t>(o.count * sector_bytes);
    if (o.verb == Verb::write) {
        std::vector<std::byte> data(o.count * sector_bytes);
        for (std::size_t i = 0; i < o.count; ++i)
            fill(file, o.first + i, step, data.data() + i * sector_bytes);
        need(::pwrite(fd, data.data(), data.size(), offset) == bytes, "write", o, step);
    } else if (o.verb == Verb::punch) {
        const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        need(::fallocate(fd, mode, offset, bytes) == 0, "punch", o, step);
    } else if (o.verb == Verb::truncate) {
        need(::ftruncate(fd, bytes) == 0, "truncate", o, step);
    } else if (o.verb == Verb::fsync) {
        need(::fsync(fd) == 0, "fsync", o, step);
    } else {
        need(::fdatasync(fd) == 0, "fdatasync", o, step);
    }
}

// The working directory is DIR.
void perform(const Operation& o, FileId file, Step step) {
    const std::string path = path_of(o.name), other = path_of(o.other);
    switch (o.verb) {
        case Verb::make: {
            const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            need(fd >= 0 && ::close(fd) == 0, "make", o, step);
            return;
        }
        case Verb::link:
            return need(::link(path.c_str(), other.c_str()) == 0, "link", o, step);
        case Verb::rename:
            return need(::rename(path.c_str(), other.c_str()) == 0, "rename", o, step);
        case Verb::unlink:
            return need(::unlink(path.c_str()) == 0, "unlink", o, step);
        case Verb::mkdir:
            return need(::mkdir(directory_name(o.name).c_str(), 0700) == 0, "mkdir", o, step);
        case Verb::rmdir:
            return need(::rmdir(directory_name(o.name).c_str()) == 0, "rmdir", o, step);
        case Verb::syncfs: {
            const int fd = ::open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            need(fd >= 0 && ::syncfs(fd) == 0 && ::close(fd) == 0, "syncfs", o, step);
            return;
        }
        case Verb::write:
        case Verb::punch:
        case Verb::truncate:
        case Verb::fsync:
        case Verb::fdatasync: {
            const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
            need(fd >= 0, "open", o, step);
            work_on(fd, o, file, step);
            need(::close(fd) == 0, "close", o, step);
            return;
        }
    }
}

struct Record {
    std::uint64_t magic = record_magic, seed = 0;
    std::uint64_t done = 0;   // every step up to this one; and none after the next one that syncs
    std::uint64_t ended = 0;  // 1: exactly `done` steps
};

volatile sig_atomic_t stop = 0;

int run(const std::string& directory, const std::string& path, std::uint64_t seed, long seconds,
        unsigned long steps) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) give_up(path);
    if (::mkdir(directory.c_str(), 0700) != 0 || ::chdir(directory.c_str()) != 0) {
        give_up(directory);
    }
    ::sync();
    struct sigaction action {};
    action.sa_handler = [](int) { stop = 1; };
    ::sigaction(SIGTERM, &action, nullptr);
    Record record;
    record.seed = seed;
    const auto tell = [&] {
        if (::pwrite(fd, &record, sizeof record, 0) != sizeof record) give_up(path);
    };
    tell();
    Model model(seed);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (stop == 0 && (seconds == 0 || std::chrono::steady_clock::now() < end)) {
        const Operation operation = model.next();
        const FileId file = operation.verb < Verb::mkdir ? model.names.file[operation.name] : 0;
        perform(operation, file, model.step + 1);
        model.apply(operation);
        record.done = model.step;
        if (operation.syncs()) tell();
        if (model.step == steps) return 0;
    }
    record.ended = 1;
    tell();
    std::printf("steps=%" PRIu64 " files=%zu\n", record.done, model.files.size());
    return 0;
}

// What is there: an inode number for each name, by its path; directories have 0.
using Listing = std::map<std::string, ino_t>;
void list(const std::string& directory, const std::string& prefix, Listing& listing) {
    DIR* const stream = ::opendir(directory.c_str());
    if (stream == nullptr) give_up(directory);
    while (const dirent* const entry = ::readdir(stream)) {
        const std::string name = entry->d_name;
        if (name == "." || name == "..") continue;
        struct stat status {};
        if (::lstat((directory + "/" + name).c_str(), &status) != 0) give_up(name);
        const bool is_directory = S_ISDIR(status.st_mode);
        listing[prefix + name] = is_directory ? 0 : status.st_ino;
        if (is_directory) list(directory + "/" + name, prefix + name + "/", listing);
    }
    ::closedir(stream);
}

// The same names, and two are links of one file here where they are there.
bool same(const Names& names, const Listing& listing) {
    std::map<FileId, ino_t> inodes;
    std::set<ino_t> used;
    std::size_t count = 0;
    for (std::size_t i = 1; i < directories; ++i) {
        const auto found = listing.find(directory_name(i));
        if ((found != listing.end()) != names.made[i]) return false;
        count += names.made[i] ? 1U : 0U;
    }
    for (std::size_t i = 0; i < names_max; ++i) {
        if (names.file[i] == 0) continue;
        ++count;
        const auto found = listing.find(path_of(i));
        if (found == listing.end() || found->second == 0) return false;
        const auto [known, fresh] = inodes.emplace(names.file[i], found->second);
        if (known->second != found->second) return false;
        if (fresh && !used.insert(found->second).second) return false;
    }
    return count == listing.size();
}

int complain(const std::string& what) {
    std::printf("%s\n", what.c_str());
    return 1;
}

// Empty, or what is wrong.
std::string verify_file(const std::string& path, FileId id, const File& file, bool exact) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (fd < 0 || ::fstat(fd, &status) != 0) give_up(path);
    const auto bytes = static_cast<std::size_t>(status.st_size);
    const std::size_t size = bytes / sector_bytes;
    const std::size_t low = exact ? file.now.size() : file.size_min;
    const std::size_t high = exact ? file.now.size() : file.size_max;
    if (bytes % sector_bytes != 0 || size < low || size > high) {
        ::close(fd);
        return path + " (of step " + std::to_string(id) + ") has " + std::to_string(bytes) +
               " bytes; sectors: " + std::to_string(low) + " to " + std::to_string(high);
    }
    std::vector<std::byte> data(bytes);
    if (::pread(fd, data.data(), bytes, 0) != static_cast<ssize_t>(bytes)) give_up(path);
    ::close(fd);
    std::array<std::byte, sector_bytes> expected{};
    for (std::size_t i = 0; i < size; ++i) {
        const std::byte* const seen = data.data() + i * sector_bytes;
        const auto version = static_cast<Step>(replica::load_le<std::uint64_t>(seen));
        fill(id, i, version, expected.data());
        const auto& maybe = file.maybe[i];
        const bool possible = exact ? version == file.now[i]
                                    : std::find(maybe.begin(), maybe.end(), version) != maybe.end();
        if (!possible || std::memcmp(seen, expected.data(), sector_bytes) != 0) {
            return path + " (of step " + std::to_string(id) + "), sector " + std::to_string(i) +
                   ": it says step " + std::to_string(version) + ", not " +
                   std::to_string(maybe.front()) + " or later";
        }
    }
    return "";
}

std::string verify_files(const std::string& directory, const Names& names, const Model& model,
                         bool exact) {
    for (std::size_t i = 0; i < names_max; ++i) {
        const FileId id = names.file[i];
        if (id == 0) continue;
        std::string wrong =
            verify_file(directory + "/" + path_of(i), id, model.files.at(id), exact);
        if (!wrong.empty()) return wrong;
    }
    return "";
}

// What was found, and what is expected after the steps that RECORD tells of.
struct Expected {
    Model model;
    bool exact = false;
    std::map<Step, Names> moments;  // the names after each step that may be the last one found
};
Expected expect(const Record& record) {
    Expected expected{Model(record.seed), record.ended != 0, {}};
    Model& model = expected.model;
    expected.moments[0] = model.names;
    for (;;) {
        const Operation operation = model.next();
        // A step that syncs, after the last one that is known to be done, may have been under way.
        if (model.step >= record.done && (expected.exact || operation.syncs())) break;
        model.apply(operation);
        if (model.durable == model.step) expected.moments.clear();
        expected.moments[model.step] = model.names;
    }
    const Step oldest = expected.exact ? model.step : model.durable;
    expected.moments.erase(expected.moments.begin(), expected.moments.lower_bound(oldest));
    return expected;
}

int verify(const std::string& directory, const std::string& path) {
    Record record;
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) give_up(path);
    const ssize_t got = ::read(fd, &record, sizeof record);
    ::close(fd);
    if (got == 0) {
        std::printf("steps=0\n");  // not begun
        return 0;
    }
    if (got != sizeof record || record.magic != record_magic) give_up(path);
    const Expected expected = expect(record);
    const Model& model = expected.model;
    Listing listing;
    list(directory, "", listing);
    // The same names may be those of several moments, of other files each.
    std::string wrong;
    bool found = false, right = false;
    for (const auto& [step, names] : expected.moments) {
        if (right || !same(names, listing)) continue;
        found = true;
        wrong = verify_files(directory, names, model, expected.exact);
        right = wrong.empty();
    }
    if (!found) {
        for (const auto& [name, inode] : listing)
            std::printf("  %s %" PRIu64 "\n", name.c_str(), std::uint64_t{inode});
        return complain("these names are of no step from " +
                        std::to_string(expected.moments.begin()->first) + " to " +
                        std::to_string(model.step));
    }
    if (!right) return complain(wrong);
    std::printf("steps=%u names=%zu%s\n", model.step, listing.size(),
                expected.exact ? " exact" : "");
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() >= 4 && arguments.size() <= 6 && arguments[0] == "run") {
        return run(arguments[1], arguments[2], std::stoull(arguments[3]),
                   arguments.size() > 4 ? std::stol(arguments[4]) : 0,
                   arguments.size() > 5 ? std::stoul(arguments[5]) : 0);
    }
    if (arguments.size() == 3 && arguments[0] == "verify") {
        return verify(arguments[1], arguments[2]);
    }
    std::fprintf(stderr,
                 "usage: file_tree run DIR RECORD SEED [SECONDS [STEPS]]\n"
                 "       file_tree verify DIR RECORD\n");
    return 2;
}
