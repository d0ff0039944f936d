// SPDX-License-Identifier: Apache-2.0
// Volumes of an embedded node in the C interface: thin calls into the engine's in-process door.
#include <cstddef>
#include <span>

#include "libreplica/backend.hpp"
#include "libreplica/edge.hpp"
#include "replica/replica.h"

using namespace replica;
using namespace replica::lib;

namespace {

// Runs `body` with the volume's node and name.
template <class F>
int on_volume(replica_volume* volume, F&& body) {
    return at_edge([&]() -> Status {
        if (volume == nullptr) return invalid_argument("the volume handle is NULL");
        return body(*volume->backend->node(), volume->name);
    });
}

Status check_flags(std::uint32_t flags) {
    if ((flags & ~REPLICA_FUA) == 0) return ok_status();
    return invalid_argument("flags other than REPLICA_FUA are set");
}

Result<IoKind> kind_of(replica_io_kind kind) {
    switch (kind) {
        case REPLICA_IO_READ:
            return IoKind::read;
        case REPLICA_IO_WRITE:
            return IoKind::write;
        case REPLICA_IO_FLUSH:
            return IoKind::flush;
        case REPLICA_IO_DISCARD:
            return IoKind::discard;
        case REPLICA_IO_WRITE_ZEROES:
            return IoKind::write_zeroes;
    }
    return invalid_argument("there is no such kind of IO");
}

}  // namespace

int replica_volume_open(replica_node* node, const char* name, replica_volume** volume) {
    return at_edge([&]() -> Status {
        if (node == nullptr || name == nullptr || volume == nullptr) {
            return invalid_argument("the node, the name or the place for the handle is NULL");
        }
        if (node->backend->node() == nullptr) {
            return Error{Errc::unsupported, 0,
                         "a daemon's volume is not opened by calls: export it over NBD, or embed a "
                         "node"};
        }
        const auto exists = node->backend->call("resource.get", {{"name", name}});
        if (!exists) return exists.error();
        *volume = new replica_volume{node->backend, name};
        return ok_status();
    });
}

void replica_volume_close(replica_volume* volume) { delete volume; }

int replica_volume_size(replica_volume* volume, uint64_t* size_bytes) {
    return on_volume(volume, [&](Node& node, const std::string& name) -> Status {
        if (size_bytes == nullptr) return invalid_argument("the place for the size is NULL");
        TRY(const auto status, node.status(name));
        *size_bytes = status.size_bytes;
        return ok_status();
    });
}

int replica_read(replica_volume* volume, void* buffer, size_t length, uint64_t offset) {
    return on_volume(volume, [&](Node& node, const std::string& name) -> Status {
        if (buffer == nullptr && length > 0) return invalid_argument("the buffer is NULL");
        return node.read(name, offset, {static_cast<std::byte*>(buffer), length});
    });
}

int replica_write(replica_volume* volume, const void* buffer, size_t length, uint64_t offset,
                  uint32_t flags) {
    return on_volume(volume, [&](Node& node, const std::string& name) -> Status {
        if (buffer == nullptr && length > 0) return invalid_argument("the buffer is NULL");
        TRY_STATUS(check_flags(flags));
        return node.write(name, offset, {static_cast<const std::byte*>(buffer), length},
                          (flags & REPLICA_FUA) != 0);
    });
}

int replica_flush(replica_volume* volume) {
    return on_volume(volume, [&](Node& node, const std::string& name) { return node.flush(name); });
}

int replica_discard(replica_volume* volume, uint64_t offset, uint64_t length) {
    return on_volume(volume, [&](Node& node, const std::string& name) {
        return node.discard(name, offset, length);
    });
}

int replica_write_zeroes(replica_volume* volume, uint64_t offset, uint64_t length) {
    return on_volume(volume, [&](Node& node, const std::string& name) {
        return node.write_zeroes(name, offset, length);
    });
}

int replica_submit(replica_volume* volume, const replica_io* io) {
    return on_volume(volume, [&](Node& node, const std::string& name) -> Status {
        TRY(const auto copy, copy_versioned(io, "replica_io"));
        TRY(const auto kind, kind_of(copy.kind));
        TRY_STATUS(check_flags(copy.flags));
        if (copy.done == nullptr) return invalid_argument("done is NULL");
        const bool moves_data = kind == IoKind::read || kind == IoKind::write;
        if (moves_data && copy.buffer == nullptr) return invalid_argument("the buffer is NULL");
        const std::span<std::byte> bytes(static_cast<std::byte*>(copy.buffer),
                                         moves_data ? copy.length : 0);
        return node.submit(name, kind, (copy.flags & REPLICA_FUA) != 0, copy.offset, bytes,
                           copy.length, copy.done, copy.context);
    });
}
