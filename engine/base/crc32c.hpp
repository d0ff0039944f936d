// SPDX-License-Identifier: Apache-2.0
// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) with the CPU's instruction where there is
// one (SSE 4.2, ARMv8 CRC; found out at run time) and tables elsewhere. Thread-safe, no allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace replica {

// The raw update step: no initial and no final inversion. DRBD's activity log stores
// crc32c_update(0, block); check value for "123456789" is 0x58e3fa20.
std::uint32_t crc32c_update(std::uint32_t crc, std::span<const std::byte> bytes);

// The same by tables only. For tests and for CPUs without the instruction.
std::uint32_t crc32c_update_portable(std::uint32_t crc, std::span<const std::byte> bytes);

// The usual CRC-32C with both inversions; check value for "123456789" is 0xe3069283.
inline std::uint32_t crc32c(std::span<const std::byte> bytes) {
    return ~crc32c_update(~std::uint32_t{0}, bytes);
}

}  // namespace replica
