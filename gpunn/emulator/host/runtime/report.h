// report.h - findings, as they are collected while a kernel runs.
#pragma once
#include <cstdarg>
#include <cstdio>
#include "schedule.h"

constexpr size_t MAX_REPORTS = 24;

// What memory an address is in: an argument, this block's shared memory, or another place.
static void locate(Block* b, u64 address, Report& r) {
    const u64 in_dynamic = address - reinterpret_cast<u64>(b->dynamic);
    const u64 in_shared = address - reinterpret_cast<u64>(b->shared);
    if (in_dynamic < MAX_DYNAMIC_SHARED) {
        r.memory_kind = 3;
        r.address = in_dynamic;
    } else if (in_shared < b->shared_size) {
        r.memory_kind = 2;
        const u64 dynamic = b->dynamic - b->shared;
        r.address = in_shared < dynamic ? in_shared : in_shared - MAX_DYNAMIC_SHARED;
    } else {
        r.memory_kind = 4;
        r.address = address;
        for (auto& m : b->launch->memory)
            if (address - m.base < m.size) r.memory_kind = 1;
    }
}

static void report(Fault fault, void* place, u64 address, const Access* other, const char* format, ...) {
    Block* b = own_block;
    Launch* launch = b->launch;
    char text[700];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    const Fiber* f = current();
    Report r{};
    r.fault = fault;
    r.place = reinterpret_cast<u64>(place) - launch->image_start;
    if (f) r.block = f->block, r.thread = f->thread;
    if (address) locate(f ? f->home : b, address, r);
    r.other_thread = -1;
    if (other && other->gang) {
        r.other_place = other->place;
        r.other_gang = other->gang - launch->first_tag;
        const u32 threads = b->threads;
        r.other_rank = other->thread / threads;
        r.other_thread = r.other_rank < b->gang->size ? other->thread % threads : -2;  // -2: not a thread
    }
    r.text = text;
    std::lock_guard<std::mutex> guard(launch->report_mutex);
    if (launch->reports.size() >= MAX_REPORTS || !launch->reported.insert({fault, r.place}).second) return;
    launch->reports.push_back(r);
}
