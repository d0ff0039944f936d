// SPDX-License-Identifier: Apache-2.0
// What an operator decides about one resource: protocol, error handling, split-brain policies,
// rates and timeouts. Names and meanings are DRBD's. Plain values, read by the core and by the
// tools.
#pragma once

#include <cstdint>

namespace replica {

enum class Protocol : std::uint8_t { a = 'A', b = 'B', c = 'C' };
enum class OnIoError : std::uint8_t { detach, pass_on };
// DRBD's automatic split-brain policies, for 0, 1 and 2 primaries at the moment of the handshake.
enum class AfterSb0Pri : std::uint8_t {
    disconnect,
    discard_younger_primary,
    discard_older_primary,
    discard_zero_changes,
    discard_least_changes,
    discard_local,
    discard_remote,
};
enum class AfterSb1Pri : std::uint8_t { disconnect, consensus, violently_as0p, discard_secondary };
enum class AfterSb2Pri : std::uint8_t { disconnect, violently_as0p };
// Of a disk that can make one, before it becomes the target of a resync. The shell's business.
enum class SnapshotBeforeResync : std::uint8_t { no, yes };

struct ResourceOptions {
    Protocol protocol = Protocol::c;
    OnIoError on_io_error = OnIoError::detach;
    AfterSb0Pri after_sb_0pri = AfterSb0Pri::disconnect;
    AfterSb1Pri after_sb_1pri = AfterSb1Pri::disconnect;
    AfterSb2Pri after_sb_2pri = AfterSb2Pri::disconnect;
    std::uint32_t al_extents = 1237;            // 67..6433
    std::uint64_t resync_rate_max = 0;          // bytes a second, 0: no limit
    std::uint32_t ping_interval_ms = 2'000;     // 100..120000
    std::uint32_t ping_timeout_ms = 1'000;      // 50..30000: no answer to a ping
    std::uint32_t request_timeout_ms = 10'000;  // 500..600000: no answer to a write or flush
    std::uint32_t connect_interval_ms =
        1'000;  // 50..120000: first retry; later ones take twice that
    SnapshotBeforeResync snapshot_before_resync = SnapshotBeforeResync::no;
    friend bool operator==(const ResourceOptions&, const ResourceOptions&) = default;
};

}  // namespace replica
