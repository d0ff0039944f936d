// SPDX-License-Identifier: Apache-2.0
// Units and identifiers of the whole engine. Time is nanoseconds on a monotonic clock that the
// shell (or the simulator) passes in; nothing below L3 reads a clock.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace replica {

// A point on the node's monotonic clock, in nanoseconds. Only differences have a meaning.
struct Instant {
    std::uint64_t ns = 0;
    friend constexpr auto operator<=>(const Instant&, const Instant&) = default;
    constexpr Instant operator+(std::uint64_t delta_ns) const { return Instant{ns + delta_ns}; }
};
inline constexpr std::uint64_t ns_per_ms = 1'000'000;
inline constexpr std::uint64_t ns_per_s = 1'000'000'000;

// DRBD's node id: 0..31. A node knows its peers by it.
using NodeId = std::uint8_t;
inline constexpr unsigned nodes_max = 32;

// A set of node ids, bit n for node n.
struct NodeMask {
    std::uint32_t bits = 0;
    friend constexpr bool operator==(const NodeMask&, const NodeMask&) = default;
    static constexpr NodeMask of(NodeId id) { return NodeMask{std::uint32_t{1} << id}; }
    constexpr bool has(NodeId id) const { return ((bits >> id) & 1U) != 0; }
    constexpr void add(NodeId id) { bits |= std::uint32_t{1} << id; }
    constexpr void remove(NodeId id) { bits &= ~(std::uint32_t{1} << id); }
    constexpr bool empty() const { return bits == 0; }
    constexpr unsigned count() const { return static_cast<unsigned>(std::popcount(bits)); }
    constexpr NodeMask operator|(NodeMask o) const { return {bits | o.bits}; }
    constexpr NodeMask operator&(NodeMask o) const { return {bits & o.bits}; }
    constexpr NodeMask without(NodeMask o) const { return {bits & ~o.bits}; }
};

// Sizes that DRBD's format fixes (docs/on-disk.md).
inline constexpr std::uint32_t sector_bytes = 512;
inline constexpr std::uint32_t block_bytes = 4096;       // one bitmap bit
inline constexpr std::uint32_t extent_bytes = 4U << 20;  // one activity-log extent
inline constexpr std::uint32_t blocks_per_extent = extent_bytes / block_bytes;

// The activity-log extent that holds the byte at `offset`.
constexpr std::uint32_t extent_of(std::uint64_t offset) {
    return static_cast<std::uint32_t>(offset / extent_bytes);
}
constexpr bool ranges_overlap(std::uint64_t a, std::uint64_t a_bytes, std::uint64_t b,
                              std::uint64_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

// The longest payload of one write, read or resync chunk. Doors split longer requests.
inline constexpr std::uint32_t io_bytes_max = 1U << 20;

}  // namespace replica
