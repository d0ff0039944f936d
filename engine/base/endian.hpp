// SPDX-License-Identifier: Apache-2.0
// Byte-order access to unaligned memory. `store_be32(p, v)` writes big-endian, and so on.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace replica {

static_assert(std::endian::native == std::endian::little, "add byte swaps for big-endian hosts");

template <std::unsigned_integral T>
constexpr T byte_swap(T value) {
    if constexpr (sizeof(T) == 1) return value;
    if constexpr (sizeof(T) == 2) return __builtin_bswap16(value);
    if constexpr (sizeof(T) == 4) return __builtin_bswap32(value);
    if constexpr (sizeof(T) == 8) return __builtin_bswap64(value);
}
template <std::unsigned_integral T>
T load_le(const std::byte* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}
template <std::unsigned_integral T>
T load_be(const std::byte* p) {
    return byte_swap(load_le<T>(p));
}
template <std::unsigned_integral T>
void store_le(std::byte* p, T value) {
    std::memcpy(p, &value, sizeof value);
}
template <std::unsigned_integral T>
void store_be(std::byte* p, T value) {
    store_le(p, byte_swap(value));
}

}  // namespace replica
