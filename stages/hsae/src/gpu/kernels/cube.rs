//! Sums over the units of a cube.

use cubecl::prelude::*;

/// Units of every cube. WebGPU promises so many.
pub(crate) const UNITS: u32 = 256;

/// Σ over units; all of them get it. `room` [UNITS] may be used again afterwards.
#[cube]
pub(super) fn sum_of_cube(value: f32, room: &mut Shared<[f32]>) -> f32 {
    room[UNIT_POS as usize] = value;
    sync_cube();
    let mut n = CUBE_DIM / 2;
    while n > 0 {
        if UNIT_POS < n {
            let other = room[(UNIT_POS + n) as usize];
            room[UNIT_POS as usize] += other;
        }
        sync_cube();
        n /= 2;
    }
    let sum = room[0];
    sync_cube();
    sum
}

/// The same for counts.
#[cube]
pub(super) fn count_of_cube(value: u32, room: &mut Shared<[u32]>) -> u32 {
    room[UNIT_POS as usize] = value;
    sync_cube();
    let mut n = CUBE_DIM / 2;
    while n > 0 {
        if UNIT_POS < n {
            let other = room[(UNIT_POS + n) as usize];
            room[UNIT_POS as usize] += other;
        }
        sync_cube();
        n /= 2;
    }
    let sum = room[0];
    sync_cube();
    sum
}

/// Σ over the units before this one. `room` [UNITS] may be used again afterwards.
#[cube]
pub(super) fn count_before(value: u32, room: &mut Shared<[u32]>) -> u32 {
    room[UNIT_POS as usize] = value;
    sync_cube();
    let mut distance = 1u32;
    while distance < CUBE_DIM {
        let mut before = 0u32;
        if UNIT_POS >= distance {
            before = room[(UNIT_POS - distance) as usize];
        }
        sync_cube();
        room[UNIT_POS as usize] += before;
        sync_cube();
        distance *= 2;
    }
    let with_this = room[UNIT_POS as usize];
    sync_cube();
    with_this - value
}
