/* SPDX-License-Identifier: BSD-3-Clause */
/* What this machine can run: cpuid, the OS's consent (xgetbv), cache sizes, and the rows built in.
 */
#define _GNU_SOURCE /* syscall() */
#include "fastconv.h"

#include <string.h>

enum {
    FC_CPU_AVX2 = 1,
    FC_CPU_FMA = 2,
    FC_CPU_AVX512F = 4,
    FC_CPU_AVX512VL = 8,
    FC_CPU_AVX512BW = 16,
    FC_CPU_AVX512DQ = 32,
    FC_CPU_AVX512BF16 = 64,
    FC_CPU_AMX = 128 /* tiles and their bfloat16 products */
};

static const struct {
    unsigned bit;
    const char *name;
} feature_names[] = {{FC_CPU_AVX2, "AVX2"},
                     {FC_CPU_FMA, "FMA"},
                     {FC_CPU_AVX512F, "AVX512F"},
                     {FC_CPU_AVX512VL, "AVX512VL"},
                     {FC_CPU_AVX512BW, "AVX512BW"},
                     {FC_CPU_AVX512DQ, "AVX512DQ"},
                     {FC_CPU_AVX512BF16, "AVX512_BF16"},
                     {FC_CPU_AMX, "AMX_BF16"}};

#if defined(__x86_64__)
#include <cpuid.h>

/* Of leaf 7, edx; gcc and clang have different names for them. */
enum { FC_BIT_AMX_BF16 = 1 << 22, FC_BIT_AMX_TILE = 1 << 24 };

static uint64_t xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static unsigned cpu_features(void) {
    unsigned a, b, c, d, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    /* XCR0: bits 1-2 = xmm and ymm state, bits 5-7 = opmask and zmm, bits 17-18 =
     * tile configuration and data: the state that the OS saves. */
    const uint64_t os = xcr0();
    const int os_ymm = (os & 0x6) == 0x6, os_zmm = (os & 0xe6) == 0xe6;
    if (os_ymm && (c & bit_FMA)) found |= FC_CPU_FMA;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    if (os_ymm && (b & bit_AVX2)) found |= FC_CPU_AVX2;
    if (!os_zmm) return found;
    if (b & bit_AVX512F) found |= FC_CPU_AVX512F;
    if (b & bit_AVX512VL) found |= FC_CPU_AVX512VL;
    if (b & bit_AVX512BW) found |= FC_CPU_AVX512BW;
    if (b & bit_AVX512DQ) found |= FC_CPU_AVX512DQ;
    if ((os & 0x60000) == 0x60000 && (d & FC_BIT_AMX_TILE) && (d & FC_BIT_AMX_BF16))
        found |= FC_CPU_AMX;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16)) found |= FC_CPU_AVX512BF16;
    return found;
}

const char *fc_cpu_name(void) {
    static char name[49];
    unsigned regs[12];
    if (!name[0]) {
        for (unsigned i = 0; i < 3; i++)
            if (!__get_cpuid(0x80000002u + i, regs + 4 * i, regs + 4 * i + 1, regs + 4 * i + 2,
                             regs + 4 * i + 3))
                return "x86-64";
        memcpy(name, regs, 48);
    }
    return name;
}

/* Deterministic cache parameters: leaf 4 (Intel) or 0x8000001D (AMD); the layout is the same. */
size_t fc_cache_bytes(int level) {
    static const unsigned leaves[] = {4, 0x8000001Du};
    for (int l = 0; l < 2; l++) {
        unsigned a, b, c, d;
        for (unsigned i = 0; i < 16; i++) {
            if (!__get_cpuid_count(leaves[l], i, &a, &b, &c, &d) || (a & 31) == 0) break;
            if ((a & 31) == 2 || (int)(a >> 5 & 7) != level) continue; /* type 2: instructions */
            return (size_t)((b >> 22) + 1) * ((b >> 12 & 1023) + 1) * ((b & 4095) + 1) *
                   ((size_t)c + 1);
        }
    }
    return 0;
}
#else
static unsigned cpu_features(void) { return 0; }
const char *fc_cpu_name(void) { return "unknown"; }
size_t fc_cache_bytes(int level) {
    (void)level;
    return 0;
}
#endif

#if defined(__x86_64__) && defined(__linux__)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux saves the 8 KiB of tile data for processes that asked for it
 * (Documentation/arch/x86/xstate.rst). Every thread and child then may use them; asking twice is
 * harmless. */
static const char *tiles_refused(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    static int asked;
    static const char *answer;
    if (!asked) {
        if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0)
            answer = errno == ENOSPC
                         ? "room for tile registers on the alternate signal stack of every thread"
                         : "permission of the operating system to use tile registers";
        asked = 1;
    }
    return answer;
}
#else
static const char *tiles_refused(void) { return "tile registers, which need Linux on x86-64"; }
#endif

#define FC_ISA(name, needs, flags) extern const fc_table fc_table_##name;
#include "isa/isa.def"
#undef FC_ISA

static const struct {
    const fc_table *table;
    unsigned needs;
} rows[] = {
#define FC_ISA(name, needs, flags) {&fc_table_##name, needs},
#include "isa/isa.def"
#undef FC_ISA
};

int fc_isa_count(void) { return (int)(sizeof rows / sizeof rows[0]); }

const fc_table *fc_isa_table(int row) { return rows[row].table; }

const char *fc_isa_missing(int row, int ask) {
    const unsigned lacking = rows[row].needs & ~cpu_features();
    for (size_t i = 0; i < sizeof feature_names / sizeof feature_names[0]; i++)
        if (lacking & feature_names[i].bit) return feature_names[i].name;
    return ask && rows[row].needs & FC_CPU_AMX ? tiles_refused() : NULL;
}

const char *fc_compiler(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}
