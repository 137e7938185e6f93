//! An allocator that gives no more than a small input can need.

#![expect(
    unsafe_code,
    reason = "an allocator is unsafe to write; this one passes everything on to the system's"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr::null_mut,
};

/// Bytes that a reader may ask for at once: more is a size believed before the bytes are there.
const MOST: usize = 256 << 20;

/// The system's allocator, refusing more than [`MOST`] bytes at once: Rust ends the program then, and says how many it could not have.
#[derive(Debug)]
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

// SAFETY: every call that is not refused is the system's, unchanged.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST {
            return null_mut();
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > MOST {
            return null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}
