// SPDX-License-Identifier: Apache-2.0
// DRBD's state words, one meaning each, and their names for people. Order of DiskState is DRBD's:
// a larger value is better data.
#pragma once

#include <cstdint>

namespace replica {

enum class Role : std::uint8_t { unknown = 0, primary = 1, secondary = 2 };

enum class DiskState : std::uint8_t {
    diskless = 0,      // no backing disk
    attaching = 1,     // metadata is being read and the activity log applied
    failed = 2,        // an I/O error; becomes diskless when all I/O has returned
    inconsistent = 4,  // target of a resync that has not ended, or never written
    outdated = 5,      // consistent, but known to be behind
    unknown = 6,       // a peer's disk while not connected (DRBD's DUnknown)
    consistent = 7,    // consistent; whether a peer holds newer data is not known
    up_to_date = 8,
};

enum class ConnectionState : std::uint8_t {
    standalone,   // not connected and will not try: asked to by an operator, or refused data
    unconnected,  // waits for its time to try again
    connecting,   // dialling, or waiting for the peer to dial
    connected,
};

enum class ReplicationState : std::uint8_t {
    off,            // not connected, or the handshake is not done
    established,    // nothing to resync
    bitmap_source,  // exchanging bitmaps, will be source
    bitmap_target,
    sync_source,
    sync_target,
    paused_source,
    paused_target,
};

// What a resync is at: it gives data, takes data, the bitmaps are still on their way.
constexpr bool is_source(ReplicationState s) {
    return s == ReplicationState::bitmap_source || s == ReplicationState::sync_source ||
           s == ReplicationState::paused_source;
}
constexpr bool is_target(ReplicationState s) {
    return s == ReplicationState::bitmap_target || s == ReplicationState::sync_target ||
           s == ReplicationState::paused_target;
}
constexpr bool is_resyncing(ReplicationState s) { return is_source(s) || is_target(s); }
constexpr bool is_exchanging_bitmaps(ReplicationState s) {
    return s == ReplicationState::bitmap_source || s == ReplicationState::bitmap_target;
}

const char* name_of(Role role);
const char* name_of(DiskState state);
const char* name_of(ConnectionState state);
const char* name_of(ReplicationState state);

}  // namespace replica
