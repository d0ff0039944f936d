// SPDX-License-Identifier: Apache-2.0
// The kernel's ublk interface, as far as it is used here: our own copy of the numbers and layouts
// of Linux 6.12 (include/uapi/linux/ublk_cmd.h), because the headers of a build machine may be
// older than the kernel that runs it. Bytes only; ublk_control and ublk_queue do something with it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace replica::ublk {

// Commands on /dev/ublk-control. An ioctl number: direction, size of the argument, 'u', number.
constexpr std::uint32_t command(std::uint32_t direction, std::size_t bytes, std::uint32_t number) {
    return direction << 30 | static_cast<std::uint32_t>(bytes) << 16 | std::uint32_t{'u'} << 8 |
           number;
}
inline constexpr std::uint32_t dir_read = 2, dir_both = 3;

// What a control command says, in the second half of a 128-byte submission entry.
struct ControlCommand {
    std::uint32_t dev_id = 0;
    std::uint16_t queue_id = 0xffff;  // none
    std::uint16_t bytes = 0;          // of the buffer at `address`
    std::uint64_t address = 0;
    std::uint64_t data = 0;
    std::uint16_t path_bytes = 0;
    std::uint16_t pad = 0;
    std::uint32_t reserved = 0;
};
static_assert(sizeof(ControlCommand) == 32 && offsetof(ControlCommand, queue_id) == 4 &&
              offsetof(ControlCommand, bytes) == 6 && offsetof(ControlCommand, address) == 8 &&
              offsetof(ControlCommand, data) == 16);

enum class DeviceState : std::uint16_t { dead = 0, live = 1, quiesced = 2, fail_io = 3 };

struct DeviceInfo {
    std::uint16_t queues = 1;
    std::uint16_t queue_depth = 0;
    DeviceState state = DeviceState::dead;
    std::uint16_t pad0 = 0;
    std::uint32_t io_bytes_max = 0;  // the server's buffer for each tag
    std::uint32_t dev_id = 0xffffffff;
    std::int32_t server_pid = -1;
    std::uint32_t pad1 = 0;
    std::uint64_t flags = 0;         // asked for; in the answer: granted
    std::uint64_t server_flags = 0;  // the server's own 64 bits, kept by the kernel
    std::uint32_t owner_uid = 0;
    std::uint32_t owner_gid = 0;
    std::uint64_t reserved[2] = {};
};
static_assert(sizeof(DeviceInfo) == 64 && offsetof(DeviceInfo, queue_depth) == 2 &&
              offsetof(DeviceInfo, state) == 4 && offsetof(DeviceInfo, io_bytes_max) == 8 &&
              offsetof(DeviceInfo, dev_id) == 12 && offsetof(DeviceInfo, server_pid) == 16 &&
              offsetof(DeviceInfo, flags) == 24 && offsetof(DeviceInfo, server_flags) == 32);

inline constexpr std::uint32_t cmd_get_dev_info = command(dir_read, sizeof(ControlCommand), 0x02);
inline constexpr std::uint32_t cmd_add_dev = command(dir_both, sizeof(ControlCommand), 0x04);
inline constexpr std::uint32_t cmd_del_dev = command(dir_both, sizeof(ControlCommand), 0x05);
inline constexpr std::uint32_t cmd_start_dev = command(dir_both, sizeof(ControlCommand), 0x06);
inline constexpr std::uint32_t cmd_stop_dev = command(dir_both, sizeof(ControlCommand), 0x07);
inline constexpr std::uint32_t cmd_set_params = command(dir_both, sizeof(ControlCommand), 0x08);
inline constexpr std::uint32_t cmd_get_params = command(dir_read, sizeof(ControlCommand), 0x09);
inline constexpr std::uint32_t cmd_start_recovery = command(dir_both, sizeof(ControlCommand), 0x10);
inline constexpr std::uint32_t cmd_end_recovery = command(dir_both, sizeof(ControlCommand), 0x11);
inline constexpr std::uint32_t cmd_get_features = command(dir_read, sizeof(ControlCommand), 0x13);
inline constexpr std::uint32_t cmd_del_dev_async = command(dir_read, sizeof(ControlCommand), 0x14);
inline constexpr std::uint32_t cmd_update_size = command(dir_both, sizeof(ControlCommand), 0x15);
static_assert(cmd_add_dev == 0xc0207504 && cmd_get_features == 0x80207513);

// Features.
inline constexpr std::uint64_t flag_user_recovery = 1U << 3;
inline constexpr std::uint64_t flag_user_recovery_reissue = 1U << 4;
inline constexpr std::uint64_t flag_ioctl_encode = 1U << 6;
inline constexpr std::uint64_t flag_update_size = 1U << 10;

// Parameters.
inline constexpr std::uint32_t params_basic = 1, params_discard = 2;
inline constexpr std::uint32_t attr_read_only = 1, attr_volatile_cache = 4, attr_fua = 8;

struct ParamBasic {
    std::uint32_t attrs = 0;
    std::uint8_t logical_shift = 9;
    std::uint8_t physical_shift = 12;
    std::uint8_t io_opt_shift = 12;
    std::uint8_t io_min_shift = 12;
    std::uint32_t max_sectors = 0;
    std::uint32_t chunk_sectors = 0;  // no read or write crosses a multiple of it
    std::uint64_t dev_sectors = 0;
    std::uint64_t virt_boundary_mask = 0;
};
struct ParamDiscard {
    std::uint32_t alignment = 0;
    std::uint32_t granularity_bytes = 0;
    std::uint32_t max_sectors = 0;
    std::uint32_t max_zeroes_sectors = 0;
    std::uint16_t max_segments = 0;
    std::uint16_t reserved = 0;
};
struct Params {
    std::uint32_t bytes = 0;  // of this structure
    std::uint32_t types = 0;
    ParamBasic basic;
    ParamDiscard discard;
    std::uint32_t devt[4] = {};
    std::uint32_t zoned[8] = {};
    std::uint32_t pad = 0;
};
static_assert(sizeof(ParamBasic) == 32 && offsetof(ParamBasic, logical_shift) == 4 &&
              offsetof(ParamBasic, physical_shift) == 5 &&
              offsetof(ParamBasic, io_opt_shift) == 6 && offsetof(ParamBasic, io_min_shift) == 7 &&
              offsetof(ParamBasic, max_sectors) == 8 && offsetof(ParamBasic, chunk_sectors) == 12 &&
              offsetof(ParamBasic, dev_sectors) == 16);
static_assert(sizeof(ParamDiscard) == 20 && offsetof(ParamDiscard, granularity_bytes) == 4 &&
              offsetof(ParamDiscard, max_sectors) == 8 &&
              offsetof(ParamDiscard, max_zeroes_sectors) == 12 &&
              offsetof(ParamDiscard, max_segments) == 16);
static_assert(sizeof(Params) == 112 && offsetof(Params, basic) == 8 &&
              offsetof(Params, discard) == 40);

// A request, in the array that the kernel shows of a queue: entry `tag`.
struct IoDescriptor {
    std::uint32_t op_flags;
    std::uint32_t sectors;
    std::uint64_t start_sector;
    std::uint64_t address;
};
static_assert(sizeof(IoDescriptor) == 24 && offsetof(IoDescriptor, sectors) == 4 &&
              offsetof(IoDescriptor, start_sector) == 8 && offsetof(IoDescriptor, address) == 16);

inline constexpr std::uint32_t op_mask = 0xff;
inline constexpr std::uint32_t op_read = 0, op_write = 1, op_flush = 2, op_discard = 3,
                               op_write_zeroes = 5;
inline constexpr std::uint32_t io_fua = 1U << 13;

// What a command on /dev/ublkcN says, in a submission entry of the usual size.
struct IoCommand {
    std::uint16_t queue_id = 0;
    std::uint16_t tag = 0;
    std::int32_t result = 0;  // bytes done, or -errno
    std::uint64_t address = 0;
};
static_assert(sizeof(IoCommand) == 16 && offsetof(IoCommand, tag) == 2 &&
              offsetof(IoCommand, result) == 4 && offsetof(IoCommand, address) == 8);

inline constexpr std::uint32_t cmd_fetch = command(dir_both, sizeof(IoCommand), 0x20);
inline constexpr std::uint32_t cmd_commit_and_fetch = command(dir_both, sizeof(IoCommand), 0x21);
static_assert(cmd_fetch == 0xc0107520 && cmd_commit_and_fetch == 0xc0107521);

}  // namespace replica::ublk
