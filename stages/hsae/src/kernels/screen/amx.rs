//! The product by Intel AMX: tiles of 16 rows times 32 bf16 values. The instructions are written as assembler, since the
//! compiler's names for them are not stable yet.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::{BLOCK_WORDS, PANEL, TILE, TILE_ROWS};

/// Linux hands tile registers only to processes that ask.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
const XFEATURE_XTILEDATA: libc::c_long = 18;

pub(super) fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| {
        // The tiles, bf16 in them, and an operating system that saves them (bits 17 and 18 of XCR0).
        let features = __cpuid_count(7, 0).edx;
        let has_amx = features >> 24 & 1 == 1 && features >> 22 & 1 == 1;
        if !has_amx || !std::arch::is_x86_feature_detected!("xsave") {
            return false;
        }
        // SAFETY: the processor has `xgetbv`, since the operating system uses xsave.
        let saved = unsafe { xcr0() };
        // SAFETY: a system call that takes no pointers.
        saved >> 17 & 3 == 3
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    })
}

/// # Safety
/// The processor has `xgetbv`.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: as promised by the caller.
    unsafe { _xgetbv(0) }
}

/// Eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = {
    let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        config.bytes_per_row[tile] = 64;
        config.rows[tile] = 16;
        tile += 1;
    }
    config
};

/// Shapes: x packed [n, words] of two bf16 values, w packed panels of PANEL latents → out [n, stride]; n and the latents
/// are whole tiles.
pub(super) fn product(x: &[u32], w: &[u32], words: usize, out: &mut [f32], stride: usize) {
    let (n, n_panels) = (x.len() / words, w.len() / (PANEL * words));
    assert!(n.is_multiple_of(TILE) && n_panels.is_multiple_of(2) && words.is_multiple_of(BLOCK_WORDS), "whole tiles");
    assert!(out.len() >= n * stride && stride >= n_panels * PANEL, "out is [n, stride]");
    // SAFETY: `is_available` was asked before this path was chosen; the slices are long enough, as asserted. The tiles
    // are configured before their first use and given back after the last.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly));
        for row in (0..n).step_by(TILE) {
            for pair in 0..n_panels / 2 {
                let w = w.as_ptr().add(pair * 2 * PANEL * words);
                let out = out.as_mut_ptr().add(row * stride + pair * 2 * PANEL);
                kernel(x.as_ptr().add(row * words), w, words, out, stride);
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// TILE rows against two panels: four tiles of sums, two of rows, two of latents.
///
/// # Safety
/// Tiles are configured; x holds TILE rows of `words`, w two panels, out TILE rows of `stride`.
#[inline(always)]
unsafe fn kernel(x: *const u32, w: *const u32, words: usize, out: *mut f32, stride: usize) {
    // SAFETY: as promised by the caller; the pointers stay inside what they point to.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x0} + {row}*1]",
            "tileloadd tmm6, [{w0} + {row}*1]",
            "tileloadd tmm7, [{w1} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{x1} + {row}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "dec {n}",
            "jnz 2b",
            "tilestored [{out0} + {out_row}*1], tmm0",
            "tilestored [{out0} + {out_row}*1 + 64], tmm1",
            "tilestored [{out1} + {out_row}*1], tmm2",
            "tilestored [{out1} + {out_row}*1 + 64], tmm3",
            x0 = inout(reg) x => _,
            x1 = inout(reg) x.add(TILE_ROWS * words) => _,
            w0 = inout(reg) w => _,
            w1 = inout(reg) w.add(PANEL * words) => _,
            n = inout(reg) words / BLOCK_WORDS => _,
            row = in(reg) 64usize,
            out0 = in(reg) out,
            out1 = in(reg) out.add(TILE_ROWS * stride),
            out_row = in(reg) 4 * stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
