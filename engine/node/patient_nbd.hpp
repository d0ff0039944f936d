// SPDX-License-Identifier: Apache-2.0
// The kernel's nbd with an end to each wait: a call of it may wait for requests that nobody
// answers, and all others of the machine wait for that one, as generic netlink does one thing at a
// time.
//
// A call that does not end is left behind, and may yet do what it was to do; the calls after it
// begin when it has ended.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "engine/base/result.hpp"
#include "netlink/nbd_device.hpp"

namespace replica {

inline constexpr std::chrono::milliseconds nbd_call_limit{30'000};

// The errors of its members are those of what `open` gives, and timeout. Those of this call: those
// of `open`, timeout, limit (no thread).
Result<std::unique_ptr<NbdControl>> open_patient_nbd(
    const std::function<Result<std::unique_ptr<NbdControl>>()>& open = &NbdControl::open,
    std::chrono::milliseconds limit = nbd_call_limit);

}  // namespace replica
