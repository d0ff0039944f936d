// SPDX-License-Identifier: Apache-2.0
// libreplica for C++20: replica.h with objects that close themselves, strings, and exceptions in
// place of codes. Header only; everything is in replica::client and means what replica.h says of
// the function of the same name. Objects may be moved, not copied, and used from any thread.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "replica/replica.h"

namespace replica::client {

// What every function here throws when the library refuses. what() says what was refused, why, and
// what would make it work.
class Error : public std::runtime_error {
  public:
    Error(replica_code code, int os_errno, const std::string& message)
        : std::runtime_error(message), code_(code), os_errno_(os_errno) {}
    replica_code code() const noexcept { return code_; }
    int os_errno() const noexcept { return os_errno_; }  // 0, or the errno that caused it

  private:
    replica_code code_;
    int os_errno_;
};

namespace detail {

inline void check(int code) {
    if (code == REPLICA_OK) return;
    const replica_error* const error = ::replica_last_error();
    throw Error(static_cast<replica_code>(code), error->os_errno, error->message);
}

inline const char* or_null(const std::string& text) {
    return text.empty() ? nullptr : text.c_str();
}

struct Deleter {
    void operator()(replica_node* node) const noexcept { ::replica_close(node); }
    void operator()(replica_events* events) const noexcept { ::replica_events_close(events); }
    void operator()(replica_volume* volume) const noexcept { ::replica_volume_close(volume); }
    void operator()(replica_status* status) const noexcept { ::replica_status_free(status); }
    void operator()(char* string) const noexcept { ::replica_free(string); }
};
template <class T>
using Owned = std::unique_ptr<T, Deleter>;

inline std::string take_string(char* string) { return std::string(Owned<char>(string).get()); }

}  // namespace detail

// The version of the library that is loaded, "0.1.0".
inline std::string version() { return ::replica_version_string(); }

struct Peer {
    std::string name;
    std::uint32_t node_id = 0;
    std::string address;  // HOST:PORT
};

struct ResourceConfig {
    std::string name;
    std::uint32_t node_id = 0;
    std::uint32_t volume = 0;
    std::string disk;      // absolute path
    std::string metadata;  // empty: internal
    std::vector<Peer> peers;
    std::string options;  // JSON object; empty: the defaults
    // For Node::create() only.
    bool force = false;
    std::uint32_t max_peers = 0;   // 0: one for each peer, at least 1
    std::uint64_t size_bytes = 0;  // 0: all that fits
};

struct EmbeddedOptions {
    std::string name;     // empty: the host's name
    std::string listen;   // HOST:PORT; empty: nowhere
    std::string control;  // path of a control socket; empty: none
    std::uint32_t reactors = 1;
    bool lock_memory = false;
    // Syslog level and line, on any thread; must not throw or call this library.
    std::function<void(int level, std::string_view line)> log;
};

struct PeerStatus {
    std::string name;
    std::uint32_t node_id = 0;
    std::string connection;
    std::string role;
    std::string disk;
    std::string replication;
    std::string why;
    std::uint64_t out_of_sync_bytes = 0;
    std::uint64_t resync_total_bytes = 0;
    std::uint64_t resync_done_bytes = 0;
    std::uint64_t resync_bytes_per_s = 0;
};

struct Status {
    std::string name;
    std::uint32_t node_id = 0;
    std::uint32_t volume = 0;
    bool up = false;
    bool suspended = false;
    std::string role;
    std::string disk;
    std::string why;
    std::uint64_t size_bytes = 0;
    std::uint64_t read_bytes = 0;
    std::uint64_t written_bytes = 0;
    std::string current_uuid;
    std::vector<PeerStatus> peers;
};

struct Event {
    std::uint64_t seq = 0;
    std::uint64_t missed = 0;  // > 0: so many events were dropped; all else is empty
    std::string resource;
    std::string kind;
    std::string action;
    std::string peer;
    std::string detail;
};

enum class Until {
    connected = REPLICA_UNTIL_CONNECTED,
    synced = REPLICA_UNTIL_SYNCED,
    uptodate = REPLICA_UNTIL_UPTODATE,
    primary = REPLICA_UNTIL_PRIMARY,
};

// Events of one resource or of all; one thread at a time.
class Events {
  public:
    // The next event; nothing if none came in time. Negative: wait for one.
    std::optional<Event> next(std::chrono::milliseconds timeout = std::chrono::milliseconds(-1)) {
        const replica_event* event = nullptr;
        const auto count = timeout.count() < 0 ? -1 : static_cast<int>(timeout.count());
        const int code = ::replica_events_next(handle_.get(), count, &event);
        if (code == REPLICA_TIMEOUT) return std::nullopt;
        detail::check(code);
        return Event{event->seq,    event->missed, event->resource, event->kind,
                     event->action, event->peer,   event->detail};
    }
    int fd() const { return ::replica_events_fd(handle_.get()); }

  private:
    friend class Node;
    explicit Events(replica_events* handle) : handle_(handle) {}
    detail::Owned<replica_events> handle_;
};

// The volume of a resource of an embedded node.
class Volume {
  public:
    std::uint64_t size_bytes() const {
        std::uint64_t size = 0;
        detail::check(::replica_volume_size(handle_.get(), &size));
        return size;
    }
    void read(std::span<std::byte> into, std::uint64_t offset) {
        detail::check(::replica_read(handle_.get(), into.data(), into.size(), offset));
    }
    void write(std::span<const std::byte> from, std::uint64_t offset, bool fua = false) {
        detail::check(::replica_write(handle_.get(), from.data(), from.size(), offset,
                                      fua ? REPLICA_FUA : 0));
    }
    void flush() { detail::check(::replica_flush(handle_.get())); }
    void discard(std::uint64_t offset, std::uint64_t length) {
        detail::check(::replica_discard(handle_.get(), offset, length));
    }
    void write_zeroes(std::uint64_t offset, std::uint64_t length) {
        detail::check(::replica_write_zeroes(handle_.get(), offset, length));
    }

    // Asynchronous. `done(os_errno)` runs on a thread of the node, with 0 for success; it must
    // return soon, not throw and not call this library. Buffers stay in place until then.
    template <std::invocable<int> F>
    void submit_read(std::span<std::byte> into, std::uint64_t offset, F done) {
        submit(REPLICA_IO_READ, 0, offset, into.size(), into.data(), std::move(done));
    }
    template <std::invocable<int> F>
    void submit_write(std::span<const std::byte> from, std::uint64_t offset, bool fua, F done) {
        submit(REPLICA_IO_WRITE, fua ? REPLICA_FUA : 0, offset, from.size(),
               const_cast<std::byte*>(from.data()), std::move(done));
    }
    template <std::invocable<int> F>
    void submit_flush(F done) {
        submit(REPLICA_IO_FLUSH, 0, 0, 0, nullptr, std::move(done));
    }
    template <std::invocable<int> F>
    void submit_discard(std::uint64_t offset, std::uint64_t length, F done) {
        submit(REPLICA_IO_DISCARD, 0, offset, length, nullptr, std::move(done));
    }
    template <std::invocable<int> F>
    void submit_write_zeroes(std::uint64_t offset, std::uint64_t length, bool fua, F done) {
        submit(REPLICA_IO_WRITE_ZEROES, fua ? REPLICA_FUA : 0, offset, length, nullptr,
               std::move(done));
    }

  private:
    friend class Node;
    explicit Volume(replica_volume* handle) : handle_(handle) {}

    template <class F>
    void submit(replica_io_kind kind, std::uint32_t flags, std::uint64_t offset,
                std::uint64_t length, void* buffer, F done) {
        auto context = std::make_unique<F>(std::move(done));
        replica_io io{};
        io.struct_size = sizeof io;
        io.kind = kind;
        io.flags = flags;
        io.offset = offset;
        io.length = length;
        io.buffer = buffer;
        io.done = [](void* given, int os_errno) {
            const std::unique_ptr<F> callback(static_cast<F*>(given));
            (*callback)(os_errno);
        };
        io.context = context.get();
        detail::check(::replica_submit(handle_.get(), &io));
        context.release();  // done() owns it; it is not called when submit fails
    }

    detail::Owned<replica_volume> handle_;
};

class Node {
  public:
    // "unix:PATH" or "embedded:DIR".
    static Node open(const std::string& url) {
        replica_node* handle = nullptr;
        detail::check(::replica_open(url.c_str(), &handle));
        return Node(handle, nullptr);
    }
    static Node embed(const std::string& directory, EmbeddedOptions options = {}) {
        auto log = std::make_unique<Log>(std::move(options.log));
        replica_embedded_options raw{};
        raw.struct_size = sizeof raw;
        raw.name = detail::or_null(options.name);
        raw.listen = detail::or_null(options.listen);
        raw.control = detail::or_null(options.control);
        raw.reactors = options.reactors;
        raw.lock_memory = options.lock_memory;
        if (*log) {
            raw.log = [](void* context, int level, const char* line) {
                (*static_cast<Log*>(context))(level, line);
            };
            raw.log_context = log.get();
        }
        replica_node* handle = nullptr;
        detail::check(::replica_open_embedded(directory.c_str(), &raw, &handle));
        return Node(handle, std::move(log));
    }

    Node(Node&&) noexcept = default;
    Node& operator=(Node&& other) noexcept {
        handle_ = std::move(other.handle_);  // first: the threads of the old node call the old log
        log_ = std::move(other.log_);
        return *this;
    }

    void create(const ResourceConfig& config) { with_raw(config, ::replica_create); }
    void adopt(const ResourceConfig& config) { with_raw(config, ::replica_adopt); }
    void remove(const std::string& name) { check(::replica_remove(get(), name.c_str())); }
    void set_options(const std::string& name, const std::string& json) {
        check(::replica_set_options(get(), name.c_str(), json.c_str()));
    }
    void up(const std::string& name) { check(::replica_up(get(), name.c_str())); }
    void down(const std::string& name) { check(::replica_down(get(), name.c_str())); }
    void attach(const std::string& name) { check(::replica_attach(get(), name.c_str())); }
    void detach(const std::string& name) { check(::replica_detach(get(), name.c_str())); }
    // Peer "": every peer.
    void connect(const std::string& name, const std::string& peer = "",
                 bool discard_my_data = false) {
        check(::replica_connect(get(), name.c_str(), detail::or_null(peer), discard_my_data));
    }
    void disconnect(const std::string& name, const std::string& peer = "") {
        check(::replica_disconnect(get(), name.c_str(), detail::or_null(peer)));
    }
    void promote(const std::string& name, bool force = false) {
        check(::replica_promote(get(), name.c_str(), force));
    }
    void demote(const std::string& name) { check(::replica_demote(get(), name.c_str())); }
    void invalidate(const std::string& name) { check(::replica_invalidate(get(), name.c_str())); }
    void invalidate_remote(const std::string& name, const std::string& peer = "") {
        check(::replica_invalidate_remote(get(), name.c_str(), detail::or_null(peer)));
    }
    void pause_sync(const std::string& name, const std::string& peer = "") {
        check(::replica_pause_sync(get(), name.c_str(), detail::or_null(peer)));
    }
    void resume_sync(const std::string& name, const std::string& peer = "") {
        check(::replica_resume_sync(get(), name.c_str(), detail::or_null(peer)));
    }
    void new_current_uuid(const std::string& name, bool clear_bitmap = false) {
        check(::replica_new_current_uuid(get(), name.c_str(), clear_bitmap));
    }
    // The volume's size now: the old one while other nodes have no room yet.
    std::uint64_t resize(const std::string& name, std::uint64_t size_bytes = 0) {
        std::uint64_t size = 0;
        check(::replica_resize(get(), name.c_str(), size_bytes, &size));
        return size;
    }
    void export_nbd(const std::string& name, const std::string& door) {
        check(::replica_export(get(), name.c_str(), door.c_str()));
    }
    void unexport(const std::string& name, const std::string& door = "") {
        check(::replica_unexport(get(), name.c_str(), detail::or_null(door)));
    }

    // Timeout 0: no limit. Throws Error with REPLICA_TIMEOUT, whose text says what is missing.
    void wait(const std::string& name, Until until, std::chrono::milliseconds timeout = {},
              const std::string& peer = "") {
        check(::replica_wait(get(), name.c_str(), static_cast<replica_until>(until),
                             detail::or_null(peer), static_cast<std::uint64_t>(timeout.count())));
    }
    Status status(const std::string& name) const {
        replica_status* raw = nullptr;
        check(::replica_status_get(get(), name.c_str(), &raw));
        return from_raw(*detail::Owned<replica_status>(raw));
    }
    // Name "": all resources.
    std::string status_json(const std::string& name = "") const {
        char* json = nullptr;
        check(::replica_status_json(get(), detail::or_null(name), &json));
        return detail::take_string(json);
    }
    std::string stats_json(const std::string& name) const {
        char* json = nullptr;
        check(::replica_stats_json(get(), name.c_str(), &json));
        return detail::take_string(json);
    }
    std::string call(const std::string& method, const std::string& params = "{}") {
        char* json = nullptr;
        check(::replica_call(get(), method.c_str(), params.c_str(), &json));
        return detail::take_string(json);
    }
    // Name "": of all resources.
    Events events(const std::string& name = "") {
        replica_events* handle = nullptr;
        check(::replica_events_open(get(), detail::or_null(name), &handle));
        return Events(handle);
    }
    // Embedded nodes only. Close the volumes before the node.
    Volume open_volume(const std::string& name) {
        replica_volume* handle = nullptr;
        check(::replica_volume_open(get(), name.c_str(), &handle));
        return Volume(handle);
    }

  private:
    using Log = std::function<void(int level, std::string_view line)>;

    Node(replica_node* handle, std::unique_ptr<Log> log) : log_(std::move(log)), handle_(handle) {}
    replica_node* get() const { return handle_.get(); }
    static void check(int code) { detail::check(code); }

    void with_raw(const ResourceConfig& config,
                  int (*make)(replica_node*, const replica_resource_config*)) {
        std::vector<replica_peer> peers;
        for (const auto& peer : config.peers) {
            peers.push_back({peer.name.c_str(), peer.node_id, peer.address.c_str()});
        }
        replica_resource_config raw{};
        raw.struct_size = sizeof raw;
        raw.name = config.name.c_str();
        raw.node_id = config.node_id;
        raw.volume = config.volume;
        raw.disk = config.disk.c_str();
        raw.metadata = detail::or_null(config.metadata);
        raw.peers = peers.data();
        raw.peer_count = peers.size();
        raw.options = detail::or_null(config.options);
        raw.force = config.force;
        raw.max_peers = config.max_peers;
        raw.size_bytes = config.size_bytes;
        check(make(get(), &raw));
    }

    static Status from_raw(const replica_status& raw) {
        Status status{
            raw.name,          raw.node_id,      raw.volume, raw.up,         raw.suspended,
            raw.role,          raw.disk,         raw.why,    raw.size_bytes, raw.read_bytes,
            raw.written_bytes, raw.current_uuid, {}};
        for (std::size_t i = 0; i < raw.peer_count; ++i) {
            const replica_peer_status& peer = *raw.peers[i];
            status.peers.push_back({peer.name, peer.node_id, peer.connection, peer.role, peer.disk,
                                    peer.replication, peer.why, peer.out_of_sync_bytes,
                                    peer.resync_total_bytes, peer.resync_done_bytes,
                                    peer.resync_bytes_per_s});
        }
        return status;
    }

    std::unique_ptr<Log> log_;  // outlives the handle, whose threads call it
    detail::Owned<replica_node> handle_;
};

}  // namespace replica::client
