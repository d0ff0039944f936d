// SPDX-License-Identifier: Apache-2.0
// See mapping_record.hpp.
#include "engine/node/mapping_record.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/base/text.hpp"

namespace replica {
namespace {

constexpr const char* magic = "replica mapping 1";

std::string text_of_record(const MappingRecord& record) {
    const auto place = [](const std::string& text) { return text.empty() ? "-" : text.c_str(); };
    return text_of("%s\nuuid %s\nover %s\nfrom %s\nheld %d\n", magic, record.uuid.c_str(),
                   place(record.over), place(record.from), record.held ? 1 : 0);
}

// The rest of the line that begins with `key`; empty: there is none, or "-".
std::string value_of(const std::string& text, const std::string& key) {
    const std::size_t at = text.find("\n" + key + " ");
    if (at == std::string::npos) return "";
    const std::size_t begin = at + key.size() + 2;
    std::string value = text.substr(begin, text.find('\n', begin) - begin);
    return value == "-" ? "" : value;
}

Error file_error(const std::string& path, const char* what) {
    return {Errc::io, errno,
            text_of("%s can not be %s: %s", path.c_str(), what, std::strerror(errno))};
}

// Opens, hands the descriptor over, closes; leaves the errno of what failed.
template <class F>
bool with_file(const std::string& path, int flags, F&& use) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    const bool good = use(fd);
    const int error = errno;
    ::close(fd);
    errno = error;
    return good;
}

}  // namespace

MappingRecordFile::MappingRecordFile(const std::string& state_dir, const std::string& resource)
    : directory_(state_dir + "/mapped"), path_(directory_ + "/" + resource) {}

bool MappingRecordFile::exists() const {
    return ::access(path_.c_str(), F_OK) == 0 || errno != ENOENT;
}

Result<std::optional<MappingRecord>> MappingRecordFile::load() const {
    char bytes[1024] = {};
    ssize_t length = -1;
    const bool read = with_file(path_, O_RDONLY, [&](int fd) {
        length = ::read(fd, bytes, sizeof bytes - 1);
        return length >= 0;
    });
    if (!read && errno == ENOENT) return std::optional<MappingRecord>();
    if (!read) return file_error(path_, "read");
    const std::string text(bytes, static_cast<std::size_t>(length));
    const MappingRecord record{value_of(text, "uuid"), value_of(text, "over"),
                               value_of(text, "from"), value_of(text, "held") == "1"};
    if (record.uuid.empty() || text_of_record(record) != text) {
        return Error{Errc::corrupt, 0,
                     path_ +
                         " is not the record of a mapped device: see which there are (dmsetup "
                         "info), remove the one that nobody uses, and this file"};
    }
    return std::optional<MappingRecord>(record);
}

Status MappingRecordFile::save(const MappingRecord& record) const {
    if (::mkdir(directory_.c_str(), 0700) != 0 && errno != EEXIST) {
        return file_error(directory_, "made");
    }
    // No resource has such a name.
    const std::string next = directory_ + "/." + path_.substr(directory_.size() + 1) + ".new";
    const std::string text = text_of_record(record);
    const bool written = with_file(next, O_WRONLY | O_CREAT | O_TRUNC, [&](int fd) {
        const ssize_t count = ::write(fd, text.data(), text.size());
        if (count >= 0 && count < static_cast<ssize_t>(text.size())) errno = ENOSPC;
        return count == static_cast<ssize_t>(text.size()) && ::fsync(fd) == 0;
    });
    if (!written || ::rename(next.c_str(), path_.c_str()) != 0 ||
        !with_file(directory_, O_RDONLY | O_DIRECTORY, [](int fd) { return ::fsync(fd) == 0; })) {
        return file_error(path_, "written");
    }
    return ok_status();
}

Status MappingRecordFile::remove() const {
    if (::unlink(path_.c_str()) == 0 || errno == ENOENT) return ok_status();
    return file_error(path_, "removed");
}

}  // namespace replica
