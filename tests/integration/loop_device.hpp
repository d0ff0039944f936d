// SPDX-License-Identifier: Apache-2.0
// Loop devices for tests of disks, skipped loudly where they can not be had. Tests that use them
// hold the lock `loop`.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

#include "tests/catch.hpp"

namespace replica::test {

inline bool loop_devices_work(const char* what) {
    if (geteuid() == 0 && access("/dev/loop-control", R_OK | W_OK) == 0) return true;
    WARN("SKIPPED, needs root and loop devices: " << what);
    return false;
}

// What a command of the shell printed. It must succeed.
inline std::string output_of(const std::string& command) {
    std::FILE* pipe = popen((command + " 2>&1").c_str(), "re");
    REQUIRE(pipe != nullptr);
    std::string text;
    char line[512];
    while (std::fgets(line, sizeof line, pipe) != nullptr)
        text += line;
    const int status = pclose(pipe);
    INFO(command << ": " << text);
    REQUIRE(status == 0);
    while (!text.empty() && text.back() == '\n')
        text.pop_back();
    return text;
}

// A loop device over a file, gone at the end. options: of losetup(8).
class LoopDevice {
  public:
    LoopDevice(const std::string& file, const std::string& options)
        : path_(output_of("losetup --find --show " + options + " " + file)) {}
    LoopDevice(const LoopDevice&) = delete;
    LoopDevice& operator=(const LoopDevice&) = delete;
    ~LoopDevice() { output_of("losetup --detach " + path_); }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

}  // namespace replica::test
