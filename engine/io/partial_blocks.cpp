// SPDX-License-Identifier: Apache-2.0
// See partial_blocks.hpp.
#include "engine/io/partial_blocks.hpp"

#include <algorithm>
#include <cstring>

#include "engine/base/assert.hpp"

namespace replica {
namespace {

constexpr std::uint64_t bounce_bytes_min = 64U << 10;

}  // namespace

PartialBlocks::PartialBlocks(BlockFile& file, Done done, void* context)
    : file_(file),
      done_(done),
      context_(context),
      block_(file.logical_block_bytes()),
      bounce_bytes_(std::max(bounce_bytes_min, block_)),
      bounce_(static_cast<std::byte*>(std::aligned_alloc(block_, bounce_bytes_))) {
    ASSERT(bounce_ != nullptr && bounce_bytes_ % block_ == 0);
    op_.context = this;
    op_.done = [](DiskOp& op, int error) { static_cast<PartialBlocks*>(op.context)->on_io(error); };
}

PartialBlocks::~PartialBlocks() { ASSERT(!busy_); }

void PartialBlocks::start(const Request& request) {
    ASSERT(!busy_ && request.length > 0);
    busy_ = true;
    request_ = request;
    at_ = 0;
    step();
}

// The next piece: a part of one block, or as many whole ones as there is room for.
void PartialBlocks::step() {
    const std::uint64_t offset = request_.offset + at_, left = request_.length - at_;
    const std::uint64_t within = offset % block_, whole = left / block_ * block_;
    std::byte* const bounce = bounce_.get();
    if (within != 0 || whole == 0) {
        piece_ = std::min(left, block_ - within);
        merging_ = request_.kind != Kind::read;
        return file_.read(op_, {bounce, block_}, offset - within);
    }
    if (request_.kind == Kind::zero) {
        piece_ = whole;
        return file_.zero(op_, offset, piece_, request_.discard);
    }
    piece_ = std::min(whole, bounce_bytes_);
    if (request_.kind == Kind::read) return file_.read(op_, {bounce, piece_}, offset);
    std::memcpy(bounce, request_.data + at_, piece_);
    file_.write(op_, {bounce, piece_}, offset, request_.durable);
}

void PartialBlocks::on_io(int error) {
    const std::uint64_t offset = request_.offset + at_, within = offset % block_;
    std::byte* const part = bounce_.get() + within;
    if (error == 0 && merging_) {
        merging_ = false;
        if (request_.kind == Kind::zero) {
            std::memset(part, 0, piece_);
        } else {
            std::memcpy(part, request_.data + at_, piece_);
        }
        return file_.write(op_, {bounce_.get(), block_}, offset - within, request_.durable);
    }
    merging_ = false;
    if (error == 0 && request_.kind == Kind::read) {
        std::memcpy(request_.data + at_, part, piece_);
    }
    at_ += piece_;
    if (error == 0 && at_ < request_.length) return step();
    busy_ = false;
    done_(context_, error);
}

}  // namespace replica
