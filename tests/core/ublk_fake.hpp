// SPDX-License-Identifier: Apache-2.0
// A kernel with ublk, as far as UblkDevice sees it, in memory that processes share: so one process
// after the other can be its server, and each can die before or after any step. It behaves as
// Linux 6.12 does, with what that can not do: a device whose server dies between mapping the
// channel and asking for all requests is not handed on.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "engine/frontend/block_nodes.hpp"
#include "engine/frontend/ublk_control.hpp"
#include "tests/catch.hpp"

namespace replica {

constexpr int died = 42;  // exit status

struct FakeDevice {
    bool present = false, used = false, ready = false, partly_fetched = false;
    bool closes = true;       // the channel, when its server dies
    int open_by = 0, mm = 0;  // servers by number
    int announced = 0;        // to udev
    int given_up = 0;         // stops of a device that had users
    ublk::DeviceInfo info;
    ublk::Params params;
};

struct FakeKernel {
    std::array<FakeDevice, 4> devices;
    int server = 1;
    int steps = 0, die_at = -1;
    bool held = false;       // somebody has the device mounted
    bool in_proc = false;    // somebody has it open
    unsigned looks = 0;      // how often udev will be seen to have it open
    bool stay_open = false;  // the next server that dies half-way leaves its channel open
    bool used_attribute_fails = false;
    bool list_unread = false;  // /sys does not say which devices there are
    int slow_stops = 0;        // so many are not done in time
    std::uint64_t features = 0;

    void step() {
        if (steps++ == die_at) ::_exit(died);
    }
    FakeDevice* at(std::uint32_t id) {
        return id < devices.size() && devices[id].present ? &devices[id] : nullptr;
    }
    // What UblkQueue does on the reactor.
    void fetch_all(std::uint32_t id) {
        step();
        devices[id].partly_fetched = true;
        step();
        devices[id].partly_fetched = false;
        devices[id].ready = true;
        step();
    }
    void server_died() {
        for (FakeDevice& device : devices) {
            const bool stuck = device.partly_fetched && stay_open;
            if (device.open_by == server && !stuck) device.open_by = 0;
            if (device.info.state == ublk::DeviceState::live && device.info.server_pid == server)
                device.info.state = ublk::DeviceState::quiesced;
        }
        ++server;
        steps = 0;
    }
};

// The block devices of that kernel.
class FakeNodes final : public BlockNodes {
  public:
    explicit FakeNodes(FakeKernel& kernel) : kernel_(kernel) {}
    int claim(const std::string& name) override {
        kernel_.step();
        if (at(name).info.state == ublk::DeviceState::dead) return -ENXIO;
        return kernel_.held ? -EBUSY : ::memfd_create("claimed", MFD_CLOEXEC);
    }
    std::string user_of(const std::string&) override {
        if (kernel_.looks > 0) return --kernel_.looks, "(udev-worker) (pid 8)";
        return kernel_.in_proc ? "dd (pid 7)" : "";
    }
    int set_io_timeout(const std::string&, unsigned) override {
        kernel_.step();
        return kernel_.used_attribute_fails ? -EACCES : 0;
    }
    void announce(const std::string& name) override {
        kernel_.step();
        ++at(name).announced;
    }
    Result<BlockFacts> facts(const std::string& name) override {
        const FakeDevice& device = at(name);
        return BlockFacts{device.params.basic.dev_sectors * 512,
                          1U << device.params.basic.logical_shift, 259, device.info.dev_id};
    }

  private:
    FakeDevice& at(const std::string& name) {
        return kernel_.devices[static_cast<std::size_t>(std::atoi(name.c_str() + 5))];
    }
    FakeKernel& kernel_;
};

class FakeControl final : public UblkControl {
  public:
    explicit FakeControl(FakeKernel& kernel) : kernel_(kernel) { features_ = kernel.features; }

    Result<std::vector<std::uint32_t>> devices() override {
        if (kernel_.list_unread) return Error{Errc::io, EMFILE, "no descriptor is left"};
        std::vector<std::uint32_t> ids;
        for (std::uint32_t id = 0; id < kernel_.devices.size(); ++id) {
            if (kernel_.devices[id].present) ids.push_back(id);
        }
        return ids;
    }
    int open_channel(std::uint32_t dev_id) override {
        kernel_.step();
        FakeDevice& device = kernel_.devices[dev_id];
        if (device.open_by != 0) return -EBUSY;
        device.open_by = kernel_.server;
        opened_ = dev_id;
        kernel_.step();
        return ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    int map_channel(int, std::size_t bytes, const ublk::IoDescriptor*& shown) override {
        FakeDevice& device = kernel_.devices[opened_];
        if (device.mm == 0) device.mm = kernel_.server;
        if (device.mm != kernel_.server) {
            device.open_by = 0;  // the caller closes it
            return -EINVAL;
        }
        void* const memory = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        shown = static_cast<const ublk::IoDescriptor*>(memory);
        kernel_.step();
        return 0;
    }

  protected:
    int run(std::uint32_t command, const ublk::ControlCommand& arguments,
            std::span<std::byte> memory) override {
        kernel_.step();
        const int result = perform(command, arguments, memory);
        kernel_.step();
        return result;
    }

  private:
    int add(std::span<std::byte> memory) {
        for (std::uint32_t id = 0; id < kernel_.devices.size(); ++id) {
            FakeDevice& device = kernel_.devices[id];
            if (device.present) continue;
            device = FakeDevice{};
            device.present = true;
            std::memcpy(&device.info, memory.data(), sizeof device.info);
            device.info.dev_id = id;
            std::memcpy(memory.data(), &device.info, sizeof device.info);
            return 0;
        }
        return -ENOSPC;
    }
    int perform(std::uint32_t command, const ublk::ControlCommand& arguments,
                std::span<std::byte> memory) {
        if (command == ublk::cmd_add_dev) return add(memory);
        FakeDevice* const device = kernel_.at(arguments.dev_id);
        if (device == nullptr) return -ENODEV;
        ublk::DeviceInfo& info = device->info;
        using enum ublk::DeviceState;
        switch (command) {
            case ublk::cmd_get_dev_info:
                std::memcpy(memory.data(), &info, sizeof info);
                return 0;
            case ublk::cmd_set_params:
                if (device->used) return -EACCES;
                std::memcpy(&device->params, memory.data(), sizeof device->params);
                return 0;
            case ublk::cmd_get_params:
                std::memcpy(memory.data(), &device->params, sizeof device->params);
                return 0;
            case ublk::cmd_start_dev:
                if (!device->ready || device->used) return -EINVAL;
                device->used = true;
                info.state = live;
                info.server_pid = kernel_.server;
                return 0;
            case ublk::cmd_start_recovery:
                if (!device->ready) return -EINVAL;
                if (device->open_by != 0 || info.state != quiesced) return -EBUSY;
                device->ready = false;
                device->mm = 0;
                return 0;
            case ublk::cmd_end_recovery:
                if (!device->ready || info.state != quiesced) return -EBUSY;
                info.state = live;
                info.server_pid = kernel_.server;
                return 0;
            case ublk::cmd_update_size:
                device->params.basic.dev_sectors = arguments.data;
                return 0;
            case ublk::cmd_stop_dev:
                if (kernel_.slow_stops > 0) {
                    --kernel_.slow_stops;
                    return -ETIME;
                }
                if (info.state == quiesced) ++device->given_up;
                info.state = dead;
                device->open_by = 0;
                return 0;
            case ublk::cmd_del_dev_async:
                device->present = false;
                return 0;
            default:
                return -EOPNOTSUPP;
        }
    }

    FakeKernel& kernel_;
    std::uint32_t opened_ = 0;
};

}  // namespace replica
