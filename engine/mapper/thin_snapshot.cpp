// SPDX-License-Identifier: Apache-2.0
// See thin_snapshot.hpp.
#include "engine/mapper/thin_snapshot.hpp"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "engine/base/text.hpp"
#include "engine/io/program.hpp"

namespace replica {
namespace {

// lvm(8) is all of LVM's programs in one. One that takes too long is asked to end, which LVM hears
// where it leaves nothing half done; to kill it could leave a volume suspended for ever.
Result<ProgramEnd> run_lvm(const LvmProgram& lvm, std::vector<std::string> words) {
    words.insert(words.begin(), "lvm");
    Program program{
        lvm.places,
        std::move(words),
        {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1"},
        lvm.limit};
    // Where there is no udev its owner has told us, and LVM has to know.
    if (const char* const disabled = ::getenv("DM_DISABLE_UDEV"); disabled != nullptr) {
        program.environment.push_back(std::string("DM_DISABLE_UDEV=") + disabled);
    }
    auto ended = run_program(program);
    if (ended) return ended;
    const Error& error = ended.error();
    if (error.code == Errc::timeout) {
        return Error{Errc::timeout, 0, text_of("lvm %s does not end", program.words[1].c_str())};
    }
    return Error{
        error.code, error.os_errno,
        text_of("LVM's programs can not be run: %s (package lvm2)", std::strerror(error.os_errno))};
}

std::string trimmed(const std::string& text) {
    const std::size_t begin = text.find_first_not_of(" \n\t");
    if (begin == std::string::npos) return "";
    return text.substr(begin, text.find_last_not_of(" \n\t") - begin + 1);
}

// LVM knows a volume by its own names only, not by those below /dev/disk.
std::string name_for_lvm(const std::string& disk) {
    char* const real = ::realpath(disk.c_str(), nullptr);
    if (real == nullptr) return disk;
    std::string path(real);
    std::free(real);
    if (!path.starts_with("/dev/dm-")) return path;
    std::ifstream file("/sys/class/block" + path.substr(4) + "/dm/name");
    std::string name;
    return std::getline(file, name) ? "/dev/mapper/" + name : path;
}

Status demand_lvm(const LvmProgram& lvm, const std::vector<std::string>& words, const char* what) {
    TRY(const ProgramEnd ended, run_lvm(lvm, words));
    if (ended.status == 0) return ok_status();
    const bool full = ended.output.find("free space") != std::string::npos ||
                      ended.output.find("out of") != std::string::npos;
    const bool busy = ended.output.find("in use") != std::string::npos ||
                      ended.output.find("is used") != std::string::npos;
    return Error{full   ? Errc::no_space
                 : busy ? Errc::busy
                        : Errc::io,
                 0, text_of("%s: %s", what, trimmed(ended.output).c_str())};
}

}  // namespace

Result<ThinSnapshot> ThinSnapshot::of(const std::string& path, const std::string& resource,
                                      const LvmProgram& lvm) {
    const std::string disk = name_for_lvm(path);
    TRY(const ProgramEnd ended, run_lvm(lvm, {"lvs", "--noheadings", "--separator", " ", "-o",
                                              "vg_name,lv_name,segtype", disk}));
    const std::string said = trimmed(ended.output);
    const std::size_t first = said.find(' '), second = said.find(' ', first + 1);
    const bool thin = ended.status == 0 && second != std::string::npos &&
                      said.substr(second + 1) == "thin" && said.find('\n') == std::string::npos;
    if (!thin) {
        return Error{Errc::unsupported, 0,
                     path + " is no thin volume of LVM, of which alone a snapshot can be taken"};
    }
    return ThinSnapshot(said.substr(0, first) + "/" + said.substr(first + 1, second - first - 1),
                        "replica_" + resource, lvm);
}

Result<bool> ThinSnapshot::exists() const {
    const std::size_t slash = name_.find('/');
    TRY(const ProgramEnd ended,
        run_lvm(lvm_,
                {"lvs", "-a", "--noheadings", "-o", "lv_tags", "--select",
                 "vg_name=" + name_.substr(0, slash) + " && lv_name=" + name_.substr(slash + 1)}));
    if (ended.status != 0) return Error{Errc::io, 0, "lvs: " + trimmed(ended.output)};
    if (ended.output.find('\n') == std::string::npos) return false;
    if (trimmed(ended.output) == tag_) return true;
    return Error{Errc::exists, 0, name_ + " is there, and not ours: it lacks the tag " + tag_};
}

Status ThinSnapshot::take() const {
    TRY_STATUS(remove());
    return demand_lvm(lvm_,
                      {"lvcreate", "--yes", "--snapshot", "--setactivationskip", "y", "--addtag",
                       tag_, "--name", name_.substr(name_.find('/') + 1), volume_},
                      "no snapshot");
}

Status ThinSnapshot::remove() const {
    TRY(const bool there, exists());
    if (!there) return ok_status();
    return demand_lvm(lvm_, {"lvremove", "--yes", name_}, "the snapshot stays");
}

Status ThinSnapshot::check_unused() const {
    TRY(const ProgramEnd ended,
        run_lvm(lvm_, {"lvs", "--noheadings", "--binary", "-o", "lv_device_open", volume_}));
    if (ended.status != 0) return Error{Errc::io, 0, "lvs: " + trimmed(ended.output)};
    if (trimmed(ended.output) != "1") return ok_status();
    return Error{Errc::busy, 0,
                 volume_ + " is in use, so that its snapshot can not be put back: end its users"};
}

Error ThinSnapshot::still_waits() const {
    return {Errc::busy, 0,
            volume_ +
                " is in use, so that its snapshot is put back when it is activated the next "
                "time: end its users, then lvchange -an and -ay"};
}

Status ThinSnapshot::restore() const {
    TRY(const bool there, exists());
    if (!there) {
        return Error{Errc::not_found, 0, "there is no snapshot " + name_ + " to put back"};
    }
    TRY_STATUS(
        demand_lvm(lvm_, {"lvconvert", "--yes", "--merge", name_}, "the snapshot is not put back"));
    TRY(const bool waits, exists());
    if (!waits) return ok_status();
    return still_waits();
}

}  // namespace replica
