// SPDX-License-Identifier: Apache-2.0
// replicameta: looks at and repairs a volume's metadata while no node uses it. create, dump, check,
// apply-al, wipe. Manual: replicameta(8). The exit codes below are documented there.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstring>
#include <string>

#include "engine/io/metadata_file.hpp"
#include "engine/io/process.hpp"
#include "replicameta_report.hpp"
#include "standard_streams.hpp"
#include "tools/command_line.hpp"

namespace {

using namespace replica;

enum ExitCode {
    exit_ok = 0,
    exit_problems = 1,  // check found some
    exit_usage = 2,     // an argument is wrong
    exit_refused = 3,   // in use, holds data, or may not
    exit_device = 4,    // missing, too small, or failing
    exit_metadata = 5,  // missing, damaged, or of another version
};

ExitCode exit_code_of(Errc code) {
    switch (code) {
        case Errc::ok:
            return exit_ok;
        case Errc::exists:
        case Errc::busy:
        case Errc::permission:
        case Errc::state:
            return exit_refused;
        case Errc::corrupt:
        case Errc::unsupported:
            return exit_metadata;
        case Errc::invalid:
            return exit_usage;
        case Errc::not_found:
        case Errc::io:
        case Errc::no_space:
        case Errc::timeout:
        case Errc::cancelled:
        case Errc::limit:
            return exit_device;
    }
    return exit_device;
}

struct Options {
    MetadataTarget target;
    std::string copy;
    bool json = false;
    bool force = false;
    int node_id = -1;
    unsigned max_peers = 1;
    unsigned al_stripes = 1;
    unsigned al_stripe_size_kib = 32;
    std::uint64_t size_bytes = 0;
};

int fail(const Error& error, const Options& options) {
    const bool hint = error.code == Errc::corrupt && options.copy.empty();
    if (options.json) {
        const Json document = {{"error", {{"message", error.message}, {"errno", error.os_errno}}}};
        (void)tools::write_all(STDOUT_FILENO, document.dump(2) + "\n");
    }
    tools::complain(
        fmt::format("replicameta: {}{}\n", error.message,
                    hint ? " (--copy FILE names the node's copy of the superblock)" : ""));
    return exit_code_of(error.code);
}

int usage_error(const std::string& what) {
    tools::complain(fmt::format("replicameta: {}; see replicameta --help\n", what));
    return exit_usage;
}

Status print(const Json& document, const Options& options) {
    const std::string text = options.json ? document.dump(2) + "\n" : to_text(document);
    const int error = tools::write_all(STDOUT_FILENO, text);
    if (error == 0) return ok_status();
    return Error{Errc::io, error,
                 fmt::format("can not write to standard output: {}", std::strerror(error))};
}

Result<Json> described(const MetadataFile& file, const MetadataImage& image) {
    TRY(const BitmapCounts counts, count_bitmap(file, image));
    return describe(file, image, counts);
}

Result<std::vector<std::byte>> read_copy(const Options& options) {
    TRY(auto copy, read_superblock_copy(options.copy));
    if (copy.empty() && !options.copy.empty()) {
        return Error{Errc::not_found, 0,
                     fmt::format("{} is not there or not a superblock's copy of {} bytes",
                                 options.copy, superblock_bytes)};
    }
    return copy;
}

Result<int> run_create(const Options& options) {
    Superblock initial;
    initial.node_id = options.node_id;
    initial.max_peers = options.max_peers;
    initial.al_stripes = options.al_stripes;
    initial.al_stripe_blocks = options.al_stripe_size_kib / 4;
    initial.effective_size_sectors = options.size_bytes / sector_bytes;
    initial.device_uuid = random_u64();
    initial.extension.present = true;
    initial.extension.write_seq = 1;
    if (options.size_bytes % sector_bytes != 0) {
        return Error{Errc::invalid, 0, "--size is not a multiple of 512 bytes"};
    }
    if (options.al_stripe_size_kib % 4 != 0) {
        return Error{Errc::invalid, 0, "--al-stripe-size-kib is not a multiple of 4"};
    }
    TRY(const MetadataImage image, create_metadata(options.target, initial, options.force));
    TRY(const MetadataFile file, MetadataFile::open(options.target, DiskAccess::shared_read));
    TRY(const Json document, described(file, image));
    TRY_STATUS(print(document, options));
    return int{exit_ok};
}

Result<int> run_dump(const Options& options) {
    TRY(MetadataFile file, MetadataFile::open(options.target, DiskAccess::shared_read));
    TRY(const auto copy, read_copy(options));
    TRY(const MetadataImage image, read_metadata(file, copy));
    TRY(const Json document, described(file, image));
    TRY_STATUS(print(document, options));
    return int{exit_ok};
}

Result<int> run_check(const Options& options) {
    TRY(MetadataFile file, MetadataFile::open(options.target, DiskAccess::shared_read));
    TRY(const auto copy, read_copy(options));
    const Json findings = check(file, copy);
    TRY_STATUS(print(findings, options));
    return int{findings["problems"].empty() ? exit_ok : exit_problems};
}

Result<int> run_apply(const Options& options) {
    TRY(MetadataFile file, MetadataFile::open(options.target, DiskAccess::exclusive));
    TRY(const auto copy, read_copy(options));
    TRY(MetadataImage image, read_metadata(file, copy));
    const std::uint64_t step = options.copy.empty() ? write_seq_offline_step : 1;
    TRY(const AppliedLog applied, apply_activity_log(file, image, step, options.copy));
    const std::uint64_t marked = applied.bits_marked * image.superblock.bytes_per_bit;
    TRY_STATUS(print({{"was-primary", applied.was_primary},
                      {"hot-extents", applied.extents_hot},
                      {"extents-beyond-end", applied.extents_beyond},
                      {"marked-bits", applied.bits_marked},
                      {"marked-bytes", marked},
                      {"blocks-damaged", applied.blocks_corrupt},
                      {"warning", applied.warning.empty() ? Json() : Json(applied.warning)}},
                     options));
    return int{exit_ok};
}

Result<int> run_wipe(const Options& options) {
    TRY(MetadataFile file, MetadataFile::open(options.target, DiskAccess::exclusive));
    if (!options.force) {
        TRY(const auto image, read_metadata(file));
        return Error{Errc::state, 0,
                     fmt::format("{} holds metadata of generation {:016X}: say --force to wipe it",
                                 file.device().path(), image.superblock.current_uuid)};
    }
    TRY_STATUS(wipe_metadata(file));
    return int{exit_ok};
}

using Command = Result<int> (*)(const Options&);

CLI::App* add_command(CLI::App& app, Options& options, const char* name, const char* text) {
    CLI::App* command = app.add_subcommand(name, text);
    command->add_option("--disk", options.target.disk, "file or block device of the volume")
        ->required();
    command->add_option("--metadata", options.target.metadata,
                        "device of external metadata (none: internal)");
    return command;
}

void add_json(CLI::App* command, Options& options) {
    command->add_flag("--json", options.json, "print JSON");
}

void add_copy(CLI::App* command, Options& options) {
    command->add_option("--copy", options.copy, "the node's copy of the superblock");
    add_json(command, options);
}

void add_create_options(CLI::App* create, Options& options) {
    create->add_option("--node-id", options.node_id, "this node, 0 to 31 (none: set at attach)")
        ->transform(tools::decimal())
        ->check(CLI::Range(0, 31));
    create->add_option("--max-peers", options.max_peers, "bitmap slots, 1 to 31")
        ->transform(tools::decimal())
        ->check(CLI::Range(1, 31))
        ->capture_default_str();
    create->add_option("--al-stripes", options.al_stripes, "stripes of the activity log")
        ->transform(tools::decimal())
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    create
        ->add_option("--al-stripe-size-kib", options.al_stripe_size_kib,
                     "size of one stripe, a multiple of 4")
        ->transform(tools::decimal())
        ->check(CLI::Range(4, 16 << 20))
        ->capture_default_str();
    create
        ->add_option("--size", options.size_bytes,
                     "size of the volume, with K, M, G, T (none: agreed at the first connection)")
        ->transform(tools::size_in_bytes());
    create->add_flag("--force", options.force, "overwrite what the disk holds");
    add_json(create, options);
}

Command chosen(CLI::App& app, int argc, char** argv, Options& options) {
    CLI::App* create = add_command(app, options, "create", "write fresh metadata");
    add_create_options(create, options);
    CLI::App* dump = add_command(app, options, "dump", "print the metadata");
    add_copy(dump, options);
    CLI::App* check = add_command(app, options, "check", "report every problem of the metadata");
    add_copy(check, options);
    CLI::App* apply = add_command(app, options, "apply-al",
                                  "mark what the activity log names as out of sync, empty the log");
    add_copy(apply, options);
    CLI::App* wipe = add_command(app, options, "wipe", "remove the metadata");
    wipe->add_flag("--force", options.force, "really remove it");
    app.require_subcommand(1);
    app.parse(argc, argv);
    if (create->parsed()) return run_create;
    if (dump->parsed()) return run_dump;
    if (check->parsed()) return run_check;
    if (apply->parsed()) return run_apply;
    return run_wipe;
}

}  // namespace

int main(int argc, char** argv) {
    tools::hold_standard_streams();
    CLI::App app("Looks at and repairs the metadata of a volume that is not in use.");
    app.set_version_flag("--version", std::string("replicameta ") + REPLICA_VERSION_TEXT);
    Options options;
    Command command = nullptr;
    try {
        command = chosen(app, argc, argv, options);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
        return usage_error(error.what());
    }
    if (const auto hole = tools::empty_argument(argc, argv); !hole.empty()) {
        return usage_error(hole);
    }
    const Result<int> done = command(options);
    return done ? done.value() : fail(done.error(), options);
}
