// SPDX-License-Identifier: Apache-2.0
// See mapper.hpp. A call is one dm_task, put together and run on the thread of the library.
#include "engine/mapper/mapper.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <libdevmapper.h>
#include <sys/sysmacros.h>
#include <syslog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "engine/base/text.hpp"
#include "engine/io/patient_thread.hpp"
#include "engine/io/process.hpp"

namespace replica {
namespace {

using std::chrono::milliseconds;
// The kernel does all but a suspend at once; a device that is removed may be kept open by udev for
// a moment, which the library tries 25 times.
constexpr milliseconds call_limit{30'000}, udev_limit{20'000}, udev_poll{5};
constexpr const char* control = "/dev/mapper/control";
constexpr std::uint16_t hidden_flags =
    DM_UDEV_DISABLE_DISK_RULES_FLAG | DM_UDEV_DISABLE_OTHER_RULES_FLAG;

// ---- what the library says ----------------------------------------------------------------------

// It has one place for it in a process. Used on its thread, but for the making of a Mapper.
Mapper::Log* log_to = nullptr;
std::string last_error;  // why the task that is run fails

__attribute__((format(printf, 5, 6))) void on_library_line(int level, const char*, int, int,
                                                           const char* format, ...) {
    constexpr int level_mask = 7, error = 3, warning = 4;
    level &= level_mask;
    if (level > warning) return;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (level <= error) last_error = text;
    if (level == warning && log_to != nullptr) (*log_to)(LOG_WARNING, text);
}

// ---- one task -----------------------------------------------------------------------------------

Errc code_of(int os_errno) {
    switch (os_errno) {
        case ENXIO:
        case ENODEV:
            return Errc::not_found;
        case EBUSY:
            return Errc::busy;
        case EPERM:
        case EACCES:
            return Errc::permission;
        case EINTR:
            return Errc::timeout;
        case EINVAL:
            return Errc::invalid;
        case ENOSPC:
            return Errc::no_space;
        default:
            return Errc::io;
    }
}

std::string words(const MapKey& key) {
    if (!key.name.empty()) return key.name;
    if (!key.uuid.empty()) return key.uuid;
    if (key.device == 0) return "device-mapper";
    return text_of("%u:%u", major(key.device), minor(key.device));
}

class Task {
  public:
    Task(int type, const MapKey& key) : about_(words(key)), task_(make(type)) {
        good_ = task_ != nullptr;
        if (!good_) return;
        if (!key.name.empty()) want(dm_task_set_name(task_, key.name.c_str()));
        if (!key.uuid.empty()) want(dm_task_set_uuid(task_, key.uuid.c_str()));
        if (key.device != 0) {
            want(dm_task_set_major(task_, static_cast<int>(major(key.device))));
            want(dm_task_set_minor(task_, static_cast<int>(minor(key.device))));
        }
    }
    ~Task() {
        if (task_ != nullptr) dm_task_destroy(task_);
    }
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;

    // The library may know why it makes none.
    static dm_task* make(int type) {
        last_error.clear();
        return dm_task_create(type);
    }
    void want(int result) { good_ = good_ && result != 0; }
    dm_task* get() { return task_; }

    void put_table(const MapTable& table) {
        std::uint64_t start = 0;
        for (const MapTarget& target : table) {
            want(dm_task_add_target(task_, start, target.sectors, target.type.c_str(),
                                    target.parameters.c_str()));
            start += target.sectors;
        }
    }

    // With udev told of what happens to the device, where one runs.
    void announce(std::uint16_t flags) {
        if (good_) want(dm_task_set_cookie(task_, &cookie_, flags));
    }

    // `what` was tried, for people: "making".
    Status run(const char* what) {
        const bool ran = good_ && dm_task_run(task_) != 0;
        const int os_errno = ran ? 0 : good_ ? dm_task_get_errno(task_) : ENOMEM;
        if (cookie_ != 0) wait_for_udev();
        dm_task_update_nodes();
        if (ran) return ok_status();
        // The library tells a failed ioctl by name; the reason is the part that people want.
        const std::string why = last_error.empty() ? std::strerror(os_errno) : last_error;
        return Error{code_of(os_errno), os_errno,
                     text_of("%s %s: %s", what, about_.c_str(), why.c_str())};
    }

    MapTable targets() const {
        MapTable table;
        void* next = nullptr;
        do {
            std::uint64_t start = 0, length = 0;
            char *type = nullptr, *parameters = nullptr;
            next = dm_get_next_target(task_, next, &start, &length, &type, &parameters);
            if (type != nullptr)
                table.push_back({length, type, parameters != nullptr ? parameters : ""});
        } while (next != nullptr);
        return table;
    }

  private:
    // A udev that has died must not take us with it.
    void wait_for_udev() {
        for (milliseconds waited{0}; waited < udev_limit; waited += udev_poll) {
            int ready = 0;
            if (dm_udev_wait_immediate(cookie_, &ready) == 0 || ready != 0) return;
            ::usleep(std::chrono::microseconds(udev_poll).count());
        }
        if (log_to != nullptr) {
            (*log_to)(LOG_WARNING,
                      "udev does not answer for the mapped device " + about_ + ": going on");
        }
        static_cast<void>(dm_udev_complete(cookie_));
        static_cast<void>(dm_udev_wait(cookie_));
    }

    std::string about_;
    dm_task* task_;
    bool good_ = false;
    std::uint32_t cookie_ = 0;  // 0: there is no udev to wait for
};

// Without a value: there is no such device.
Result<std::optional<MapInfo>> read_info(const MapKey& key) {
    Task task(DM_DEVICE_INFO, key);
    TRY_STATUS(task.run("looking for"));
    dm_info found{};
    if (dm_task_get_info(task.get(), &found) == 0) {
        return Error{Errc::io, 0, "no information about " + words(key)};
    }
    if (found.exists == 0) return std::optional<MapInfo>();
    MapInfo info;
    info.name = dm_task_get_name(task.get());
    info.uuid = dm_task_get_uuid(task.get());
    info.device = makedev(found.major, found.minor);
    info.suspended = found.suspended != 0;
    info.live = found.live_table != 0;
    info.loaded = found.inactive_table != 0;
    info.read_only = found.read_only != 0;
    info.open_count = found.open_count;
    return std::optional<MapInfo>(std::move(info));
}

// The library asks by name only for what has a node to be made or removed.
Result<MapInfo> demand_info(const MapKey& key) {
    TRY(auto info, read_info(key));
    if (info) return *info;
    return Error{Errc::not_found, ENXIO, "there is no mapped device " + words(key)};
}

Result<std::vector<MapInfo>> read_list(const std::string& uuid_prefix) {
    Task task(DM_DEVICE_LIST, {});
    TRY_STATUS(task.run("listing"));
    std::vector<MapInfo> found;
    const dm_names* names = dm_task_get_names(task.get());
    if (names == nullptr || names->dev == 0) return found;
    std::vector<std::string> all;
    for (const char* at = reinterpret_cast<const char*>(names);;) {
        const auto* const entry = reinterpret_cast<const dm_names*>(at);
        all.emplace_back(entry->name);
        if (entry->next == 0) break;
        at += entry->next;
    }
    for (const std::string& name : all) {
        TRY(auto info, read_info(MapKey::of_name(name)));
        if (info && info->uuid.starts_with(uuid_prefix)) found.push_back(std::move(*info));
    }
    std::sort(found.begin(), found.end(),
              [](const MapInfo& a, const MapInfo& b) { return a.name < b.name; });
    return found;
}

Status make(const std::string& name, const std::string& uuid, const MapTable& table,
            const MapOptions& options) {
    for (const MapKey& key : {MapKey::of_name(name), MapKey::of_uuid(uuid)}) {
        TRY(const auto other, read_info(key));
        if (!other) continue;
        return Error{Errc::exists, EBUSY,
                     text_of("there is a mapped device %s already, with the UUID '%s'",
                             other->name.c_str(), other->uuid.c_str())};
    }
    Task task(DM_DEVICE_CREATE, MapKey::of_name(name));
    task.want(dm_task_set_uuid(task.get(), uuid.c_str()));
    if (options.read_only) task.want(dm_task_set_ro(task.get()));
    task.put_table(table);
    task.announce(options.hidden ? hidden_flags : 0);
    return task.run("making");
}

Status change(int type, const MapKey& key, const char* what, bool deferred = false) {
    TRY(const MapInfo info, demand_info(key));
    Task task(type, MapKey::of_name(info.name));
    if (deferred) task.want(dm_task_deferred_remove(task.get()));
    if (type == DM_DEVICE_REMOVE && !deferred) task.want(dm_task_retry_remove(task.get()));
    task.announce(0);
    return task.run(what);
}

Status pause(const MapKey& key, const MapSuspend& how) {
    TRY(const MapInfo info, demand_info(key));
    if (info.suspended) return ok_status();
    Task task(DM_DEVICE_SUSPEND, MapKey::of_name(info.name));
    if (!how.freeze) task.want(dm_task_skip_lockfs(task.get()));
    if (how.no_flush) task.want(dm_task_no_flush(task.get()));
    return task.run("suspending");
}

// ---- the mapper ---------------------------------------------------------------------------------

class LibraryMapper final : public Mapper {
  public:
    explicit LibraryMapper(const Log& log) : log_(std::make_shared<Log>(log)) {}
    ~LibraryMapper() override;
    Status begin();

    Result<std::optional<MapInfo>> info(const MapKey& key) override {
        return ask<std::optional<MapInfo>>([key] { return read_info(key); });
    }
    Result<std::vector<MapInfo>> list(const std::string& uuid_prefix) override {
        return ask<std::vector<MapInfo>>([uuid_prefix] { return read_list(uuid_prefix); });
    }
    Result<MapTable> table(const MapKey& key) override { return targets(DM_DEVICE_TABLE, key); }
    Result<MapTable> status(const MapKey& key) override { return targets(DM_DEVICE_STATUS, key); }
    Result<std::vector<dev_t>> dependencies(const MapKey& key) override;

    Result<MapInfo> create(const std::string& name, const std::string& uuid, const MapTable& table,
                           const MapOptions& options) override {
        return ask<MapInfo>([=]() -> Result<MapInfo> {
            TRY_STATUS(make(name, uuid, table, options));
            return demand_info(MapKey::of_uuid(uuid));
        });
    }
    Status load(const MapKey& key, const MapTable& table, bool read_only) override;
    Status drop_loaded(const MapKey& key) override {
        return run([key] { return Task(DM_DEVICE_CLEAR, key).run("clearing"); });
    }
    Status suspend(const MapKey& key, const MapSuspend& how) override;
    Status resume(const MapKey& key) override {
        return run([key] { return change(DM_DEVICE_RESUME, key, "resuming"); });
    }
    Status remove(const MapKey& key) override {
        return run([key] { return change(DM_DEVICE_REMOVE, key, "removing"); });
    }
    Status remove_when_unused(const MapKey& key) override {
        return run([key] { return change(DM_DEVICE_REMOVE, key, "removing", true); });
    }
    Result<std::string> message(const MapKey& key, std::uint64_t sector,
                                const std::string& text) override;

  private:
    Status run(std::function<Status()> job, milliseconds limit = call_limit) {
        return thread_->run(std::move(job), limit);
    }
    template <class T>
    Result<T> ask(std::function<Result<T>()> job) {
        // Owned by the job too, which may be left behind.
        const auto value = std::make_shared<std::optional<T>>();
        TRY_STATUS(run([job = std::move(job), value]() -> Status {
            TRY(auto got, job());
            value->emplace(std::move(got));
            return ok_status();
        }));
        return std::move(**value);
    }
    Result<MapTable> targets(int type, const MapKey& key) {
        return ask<MapTable>([type, key]() -> Result<MapTable> {
            Task task(type, key);
            TRY_STATUS(task.run("reading the table of"));
            return task.targets();
        });
    }

    std::shared_ptr<Log> log_;
    std::unique_ptr<PatientThread> thread_;
};

// The library opens it for every program that this process starts or becomes.
void keep_control_from_others() {
    constexpr const char* descriptors = "/proc/self/fd";
    DIR* const directory = ::opendir(descriptors);
    while (const dirent* entry = directory == nullptr ? nullptr : ::readdir(directory)) {
        char path[64];
        const std::string link = text_of("%s/%s", descriptors, entry->d_name);
        const ssize_t length = ::readlink(link.c_str(), path, sizeof path);
        if (length <= 0 || std::string_view(path, static_cast<std::size_t>(length)) != control) {
            continue;
        }
        ::fcntl(std::atoi(entry->d_name), F_SETFD, FD_CLOEXEC);
    }
    if (directory != nullptr) ::closedir(directory);
}

// Which one has it open is decided by the library, so the reason is asked for by hand.
Error open_error(const Error& error) {
    if (::geteuid() != 0 || error.code == Errc::permission) {
        return {Errc::permission, error.os_errno,
                "device-mapper needs root: /dev/mapper/control may not be opened"};
    }
    return {Errc::unsupported, error.os_errno,
            "no device-mapper here: the kernel has none, or it can not be reached from here "
            "(modprobe dm_mod; in a container the host has to give /dev/mapper/control): " +
                error.message};
}

Status LibraryMapper::begin() {
    TRY(thread_, PatientThread::start("device-mapper"));
    if (::access(control, F_OK) != 0) load_module("dm_mod");
    const Status version = run([log = log_]() -> Status {
        log_to = log.get();
        dm_log_with_errno_init(on_library_line);
        Task task(DM_DEVICE_VERSION, {});
        TRY_STATUS(task.run("asking for the version of"));
        // What would be opened while a device is suspended is better open before.
        dm_hold_control_dev(1);
        keep_control_from_others();
        return ok_status();
    });
    if (version) return ok_status();
    return open_error(version.error());
}

LibraryMapper::~LibraryMapper() {
    if (!thread_) return;
    const Status ended = run([log = log_] {
        dm_hold_control_dev(0);
        dm_lib_release();
        log_to = nullptr;
        return ok_status();
    });
    // What is left behind may still have something to say.
    if (!ended) static_cast<void>(new std::shared_ptr<Log>(log_));
}

Result<std::vector<dev_t>> LibraryMapper::dependencies(const MapKey& key) {
    return ask<std::vector<dev_t>>([key]() -> Result<std::vector<dev_t>> {
        Task task(DM_DEVICE_DEPS, key);
        TRY_STATUS(task.run("reading what lies below"));
        std::vector<dev_t> below;
        const dm_deps* const deps = dm_task_get_deps(task.get());
        if (deps == nullptr) return below;
        for (std::uint32_t i = 0; i < deps->count; ++i)
            below.push_back(static_cast<dev_t>(deps->device[i]));
        return below;
    });
}

Status LibraryMapper::load(const MapKey& key, const MapTable& table, bool read_only) {
    return run([=] {
        Task task(DM_DEVICE_RELOAD, key);
        if (read_only) task.want(dm_task_set_ro(task.get()));
        task.put_table(table);
        return task.run("loading a table for");
    });
}

Status LibraryMapper::suspend(const MapKey& key, const MapSuspend& how) {
    const Status done = run([=] { return pause(key, how); }, how.limit);
    if (done || done.error().os_errno != EINTR) return done;
    return Error{Errc::timeout, EINTR,
                 text_of("%s can not be suspended: I/O on what lies below it has not ended in "
                         "%lld ms",
                         words(key).c_str(), static_cast<long long>(how.limit.count()))};
}

Result<std::string> LibraryMapper::message(const MapKey& key, std::uint64_t sector,
                                           const std::string& text) {
    return ask<std::string>([=]() -> Result<std::string> {
        Task task(DM_DEVICE_TARGET_MSG, key);
        task.want(dm_task_set_sector(task.get(), sector));
        task.want(dm_task_set_message(task.get(), text.c_str()));
        TRY_STATUS(task.run(text_of("sending '%s' to", text.c_str()).c_str()));
        const char* const answer = dm_task_get_message_response(task.get());
        return std::string(answer != nullptr ? answer : "");
    });
}

}  // namespace

std::string map_parameters(dev_t device, std::uint64_t first_sector) {
    return text_of("%u:%u %llu", major(device), minor(device),
                   static_cast<unsigned long long>(first_sector));
}

Result<std::unique_ptr<Mapper>> Mapper::open(const Log& log) {
    auto self = std::make_unique<LibraryMapper>(log ? log : [](int, const std::string&) {});
    TRY_STATUS(self->begin());
    return std::unique_ptr<Mapper>(std::move(self));
}

}  // namespace replica
