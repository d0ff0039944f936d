// SPDX-License-Identifier: Apache-2.0
// What there is of this folder on a machine without libdevmapper.
#include "engine/mapper/mapper.hpp"

namespace replica {

Result<std::unique_ptr<Mapper>> Mapper::open(const Log&) {
    return Error{Errc::unsupported, 0, "no device-mapper here: this build is without libdevmapper"};
}

}  // namespace replica
