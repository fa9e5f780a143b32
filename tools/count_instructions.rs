//! A plugin of qemu's emulation of 64-bit Arm that counts the instructions of a program: all, those
//! that multiply and add vectors, and those that read or write memory. It prints one line at the
//! end. tools/arm_instructions.py builds and uses it:
//!
//! ```sh
//! rustc --edition 2024 -O --crate-type cdylib -o libcount.so tools/count_instructions.rs
//! qemu-aarch64 -plugin ./libcount.so PROGRAM
//! ```
//!
//! The names are those of version 1 of qemu's interface for plugins, which qemu 4.2 to 9.0 have.
//! Threads add without a lock, so only programs that compute on one thread are counted well.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

/// All instructions.
static ALL: AtomicU64 = AtomicU64::new(0);
/// Multiply-adds of vectors, in floating point and in integers.
static PRODUCTS: AtomicU64 = AtomicU64::new(0);
/// Loads, stores and prefetches.
static MEMORY: AtomicU64 = AtomicU64::new(0);

/// Masks and values of the multiply-adds' encodings.
const MULTIPLY_ADDS: [(u32, u32); 12] = [
    (0xbf20_fc00, 0x0e20_cc00), // fmla, fmls
    (0xbf80_b400, 0x0f80_1000), // fmla, fmls by element
    (0xbf60_fc00, 0x0e40_0c00), // fmla, fmls of half precision
    (0xbfc0_b400, 0x0f00_1000), // fmla, fmls of half precision by element
    (0xff00_0000, 0x1f00_0000), // fmadd and its relatives, of one number
    (0x9fe0_fc00, 0x0e80_9400), // sdot, udot
    (0x9f00_f400, 0x0f00_e000), // sdot, udot by element
    (0xbfe0_fc00, 0x0e80_9c00), // usdot
    (0xbf00_f400, 0x0f00_f000), // sudot, usdot by element
    (0x9fe0_f400, 0x0e80_a400), // smmla, ummla, usmmla
    (0xbf20_fc00, 0x0e20_8000), // smlal
    (0xbf3f_fc00, 0x0e20_6800), // sadalp, which adds the products of smull
];

#[repr(C)]
pub struct Block {
    _private: [u8; 0],
}

#[repr(C)]
pub struct Instruction {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: extern "C" fn(u64, *mut Block));
    fn qemu_plugin_register_atexit_cb(
        id: u64,
        call: extern "C" fn(u64, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    fn qemu_plugin_insn_data(instruction: *const Instruction) -> *const c_void;
    fn qemu_plugin_register_vcpu_tb_exec_inline(
        block: *mut Block,
        operation: c_uint,
        counter: *mut c_void,
        amount: u64,
    );
}

#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

/// Called by qemu when it loads the plugin.
#[unsafe(no_mangle)]
pub extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    _argc: c_int,
    _argv: *const *const c_char,
) -> c_int {
    // SAFETY: qemu has just given this id, and calls both functions as they are declared.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, ended, std::ptr::null_mut());
    }
    0
}

/// Called for each block that qemu translates: has its instructions added whenever it runs.
extern "C" fn translated(_id: u64, block: *mut Block) {
    // SAFETY: the block is qemu's for this call, and the indices are below its length.
    let codes: Vec<u32> = unsafe {
        (0..qemu_plugin_tb_n_insns(block))
            .map(|index| qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, index)))
            .map(|data| data.cast::<u32>().read_unaligned())
            .collect()
    };
    let of = |kind: fn(u32) -> bool| codes.iter().filter(|code| kind(**code)).count() as u64;
    for (counter, amount) in [
        (&ALL, codes.len() as u64),
        (&PRODUCTS, of(multiplies_and_adds)),
        (&MEMORY, of(reads_or_writes)),
    ] {
        if amount > 0 {
            // SAFETY: 0 means to add; the counter lives as long as the program.
            unsafe {
                qemu_plugin_register_vcpu_tb_exec_inline(block, 0, counter.as_ptr().cast(), amount);
            }
        }
    }
}

fn multiplies_and_adds(code: u32) -> bool {
    MULTIPLY_ADDS.iter().any(|(mask, value)| code & mask == *value)
}

/// Whether the code is in the group of loads and stores.
fn reads_or_writes(code: u32) -> bool {
    code & 0x0a00_0000 == 0x0800_0000
}

extern "C" fn ended(_id: u64, _data: *mut c_void) {
    let [all, products, memory] = [&ALL, &PRODUCTS, &MEMORY].map(|n| n.load(Ordering::Relaxed));
    eprintln!("instructions={all} multiply_adds={products} memory={memory}");
}
