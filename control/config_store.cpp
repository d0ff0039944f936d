// SPDX-License-Identifier: Apache-2.0
// See config_store.hpp. A file is {"checksum", "resource", "up", "version"}; the checksum is
// CRC-32C over the compact dump of the object without it, which nlohmann::json prints with sorted
// keys, so white space does not count and every other byte does.
#include "control/config_store.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "control/codec.hpp"
#include "control/fd.hpp"
#include "engine/base/crc32c.hpp"

namespace replica::control {
namespace {

constexpr unsigned file_version = 1;
constexpr std::size_t file_bytes_max = 1U << 20;
constexpr std::string_view suffix = ".json";
constexpr std::string_view temporary_suffix = ".json.tmp";

std::string checksum_of(Json document) {
    document.erase("checksum");
    const std::string text = document.dump();
    return fmt::format("crc32c:{:08x}", crc32c(std::as_bytes(std::span(text))));
}

Result<std::string> read_all(int fd, const std::string& what) {
    std::string text;
    char buffer[16384];
    for (;;) {
        const ssize_t got = ::read(fd, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno_error(errno, what);
        if (got == 0) return text;
        text.append(buffer, static_cast<std::size_t>(got));
        if (text.size() > file_bytes_max) {
            return Error{Errc::corrupt, 0, fmt::format("longer than {} bytes", file_bytes_max)};
        }
    }
}

Status write_all(int fd, std::string_view text, const std::string& what) {
    while (!text.empty()) {
        const ssize_t put = ::write(fd, text.data(), text.size());
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return errno_error(errno, what);
        text.remove_prefix(static_cast<std::size_t>(put));
    }
    return ok_status();
}

Status make_directory(const std::string& path) {
    if (::mkdir(path.c_str(), 0700) == 0) return ok_status();
    if (errno == ENOENT && path.find('/', 1) != std::string::npos) {
        TRY_STATUS(make_directory(path.substr(0, path.rfind('/'))));
        if (::mkdir(path.c_str(), 0700) == 0) return ok_status();
    }
    if (errno == EEXIST) return ok_status();
    return errno_error(errno, fmt::format("can not make the directory {}", path));
}

Status sync_directory(const std::string& path) {
    Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd || ::fsync(fd.get()) != 0)
        return errno_error(errno, fmt::format("can not sync {}", path));
    return ok_status();
}

Result<std::vector<std::string>> list_files(int directory_fd, const std::string& what) {
    const int copy = ::openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (copy < 0) return errno_error(errno, what);
    DIR* const directory = ::fdopendir(copy);
    if (directory == nullptr) {
        ::close(copy);
        return errno_error(errno, what);
    }
    std::vector<std::string> files;
    errno = 0;
    while (const dirent* entry = ::readdir(directory))
        files.emplace_back(entry->d_name);
    const int error = errno;
    ::closedir(directory);
    if (error != 0) return errno_error(error, what);
    std::sort(files.begin(), files.end());
    return files;
}

}  // namespace

Result<std::string> encode_stored(const StoredResource& resource) {
    try {
        Json document = {
            {"version", file_version}, {"up", resource.up}, {"resource", to_json(resource.config)}};
        document["checksum"] = checksum_of(document);
        return document.dump(2) + "\n";
    } catch (const std::exception& error) {
        return Error{Errc::invalid, 0,
                     fmt::format("the configuration can not be stored: {}", error.what())};
    }
}

Result<StoredResource> decode_stored(const std::string& text) {
    const auto corrupt = [](std::string message) {
        return Error{Errc::corrupt, 0, std::move(message)};
    };
    try {
        if (text.empty()) return corrupt("the file is empty");
        if (!nesting_is_sane(text)) return corrupt("the file is nested too deeply");
        const Json document = Json::parse(text, nullptr, false);
        if (document.is_discarded()) return corrupt("the file is cut short or not JSON");
        if (!document.is_object() || !document.contains("version") ||
            !document["version"].is_number_unsigned()) {
            return corrupt("the file is not a resource of Replica");
        }
        if (document["version"] > file_version) {
            return Error{Errc::unsupported, 0,
                         fmt::format("the file has version {}, written by a newer Replica; this "
                                     "one knows version {}",
                                     document["version"].get<std::uint64_t>(), file_version)};
        }
        Params params("file", document);
        if (params.text("checksum") != checksum_of(document)) {
            return corrupt("the checksum is wrong: the file was damaged, or edited by hand");
        }
        params.number("version", 1, file_version);
        StoredResource resource;
        resource.up = params.flag("up");
        resource.config = config_from_json(params.any("resource"));
        params.finish();
        return resource;
    } catch (const std::exception& error) {
        return corrupt(error.what());
    }
}

Result<std::unique_ptr<ConfigStore>> ConfigStore::open(const std::string& state_dir) {
    TRY_STATUS(check_path("state directory", state_dir));
    const std::string resources = state_dir + "/resources";
    TRY_STATUS(make_directory(resources));
    TRY_STATUS(sync_directory(state_dir));
    TRY_STATUS(sync_directory(state_dir + "/.."));
    const std::string lock = state_dir + "/daemon.lock";
    Fd lock_fd(::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!lock_fd) return errno_error(errno, fmt::format("can not open {}", lock));
    if (::flock(lock_fd.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) return errno_error(errno, fmt::format("can not lock {}", lock));
        return Error{Errc::busy, EWOULDBLOCK,
                     fmt::format("the state directory {} is in use by another node; stop that one, "
                                 "or give this one a directory of its own",
                                 state_dir)};
    }
    Fd resources_fd(::open(resources.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!resources_fd) return errno_error(errno, fmt::format("can not open {}", resources));
    return std::unique_ptr<ConfigStore>(
        new ConfigStore(state_dir, lock_fd.release(), resources_fd.release()));
}

ConfigStore::~ConfigStore() {
    ::close(resources_fd_);
    ::close(lock_fd_);  // and with it the lock
}

Result<ConfigProblem> ConfigStore::set_aside(const std::string& file, const Error& error) {
    const std::string directory = state_dir_ + "/resources/";
    ConfigProblem problem{directory + file, file.substr(0, file.size() - suffix.size()),
                          error.message, "", error.code};
    if (error.code != Errc::corrupt) {
        in_place_.insert(problem.resource);  // it may be good, only not for this version
        return problem;
    }
    for (unsigned attempt = 1; attempt < 10'000; ++attempt) {
        const std::string target =
            attempt == 1 ? file + ".corrupt" : fmt::format("{}.corrupt-{}", file, attempt);
        if (::renameat2(resources_fd_, file.c_str(), resources_fd_, target.c_str(),
                        RENAME_NOREPLACE) == 0) {
            problem.moved_to = directory + target;
            if (::fsync(resources_fd_) != 0) {
                return errno_error(errno, fmt::format("can not sync {}", directory));
            }
            return problem;
        }
        if (errno != EEXIST) break;
    }
    in_place_.insert(problem.resource);
    problem.reason +=
        fmt::format("; and it can not be set aside: {}", errno_error(errno, "rename").message);
    return problem;
}

Result<ConfigStore::Loaded> ConfigStore::load() {
    Loaded loaded;
    const std::string directory = state_dir_ + "/resources";
    TRY(const auto files, list_files(resources_fd_, fmt::format("can not list {}", directory)));
    for (const auto& file : files) {
        if (file.ends_with(temporary_suffix)) {
            // A save that never took effect: nobody was told that it had.
            ::unlinkat(resources_fd_, file.c_str(), 0);
            continue;
        }
        if (!file.ends_with(suffix)) continue;
        const std::string path = directory + "/" + file;
        Fd fd(::openat(resources_fd_, file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
        auto text =
            fd ? read_all(fd.get(), fmt::format("can not read {}", path))
               : Result<std::string>(errno_error(errno, fmt::format("can not open {}", path)));
        auto stored = text ? decode_stored(text.value()) : Result<StoredResource>(text.error());
        if (stored && stored.value().config.name + std::string(suffix) != file) {
            stored = Error{
                Errc::corrupt, 0,
                fmt::format("the file is about another resource, {}", stored.value().config.name)};
        }
        if (stored) {
            loaded.resources.push_back(std::move(stored).value());
        } else {
            TRY(auto problem, set_aside(file, stored.error()));
            loaded.problems.push_back(std::move(problem));
        }
    }
    return loaded;
}

Status ConfigStore::save(const StoredResource& resource) {
    TRY(const auto text, encode_stored(resource));
    const std::string& name = resource.config.name;
    TRY_STATUS(check_name("resource", name));
    const std::string file = name + std::string(suffix);
    if (in_place_.contains(name)) {
        return Error{Errc::exists, 0,
                     fmt::format("{}/resources/{} could not be read and is kept; move it away, or "
                                 "choose another name",
                                 state_dir_, file)};
    }
    const std::string temporary = name + std::string(temporary_suffix);
    const std::string what = fmt::format("can not store {}/resources/{}", state_dir_, file);
    const auto write_temporary = [&]() -> Status {
        Fd fd(::openat(resources_fd_, temporary.c_str(),
                       O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!fd) return errno_error(errno, what);
        TRY_STATUS(write_all(fd.get(), text, what));
        if (::fsync(fd.get()) != 0) return errno_error(errno, what);
        return ok_status();
    };
    auto written = write_temporary();
    if (written && ::renameat(resources_fd_, temporary.c_str(), resources_fd_, file.c_str()) != 0) {
        written = errno_error(errno, what);
    }
    if (!written) {
        ::unlinkat(resources_fd_, temporary.c_str(), 0);
        return written;
    }
    if (::fsync(resources_fd_) != 0) return errno_error(errno, what);
    return ok_status();
}

Status ConfigStore::remove(const std::string& name) {
    TRY_STATUS(check_name("resource", name));
    const std::string what = fmt::format("can not remove {}/resources/{}.json", state_dir_, name);
    if (::unlinkat(resources_fd_, (name + std::string(suffix)).c_str(), 0) != 0 &&
        errno != ENOENT) {
        return errno_error(errno, what);
    }
    if (::fsync(resources_fd_) != 0) return errno_error(errno, what);
    return ok_status();
}

}  // namespace replica::control
