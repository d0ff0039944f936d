/* SPDX-License-Identifier: Apache-2.0
 * The C header alone, as a C99 program sees it: it must stand by itself and every initialiser and
 * enumerator must be usable. Compiled with all warnings as errors; linked into the library's test.
 */
#include <replica/replica.h>

int replica_header_in_c(void);

int replica_header_in_c(void) {
    replica_resource_config config = REPLICA_INIT(config);
    replica_embedded_options options = REPLICA_INIT(options);
    replica_io io = REPLICA_INIT(io);
    const replica_until until = REPLICA_UNTIL_SYNCED;
    const bool sizes = config.struct_size == sizeof config &&
                       options.struct_size == sizeof options && io.struct_size == sizeof io;
    const bool zeroes = config.name == NULL && config.size_bytes == 0 && io.done == NULL &&
                        options.lock_memory == false;
    return sizes && zeroes && until == 2 && replica_version() != 0 ? 0 : 1;
}
