//! The module's memory is the server's: it counts in `used_memory`, and maxmemory sees it.

use redis_module::raw;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;

/// Allocates through the server, with its own `realloc` and `calloc`.
pub(crate) struct ServerAllocator;

/// What malloc promises; asking for more goes to the system allocator.
const ALIGNMENT_MAX: usize = 16;

#[global_allocator]
static ALLOCATOR: ServerAllocator = ServerAllocator;

const BEFORE_LOAD: &str = "the server's allocator is there before any Rust code runs";

// SAFETY: the server's functions are malloc-like: non-null memory of at least `size` bytes aligned to 16, valid until
// given back to its free or realloc. Layouts with a greater alignment never reach them, on any path, so each block goes
// back to where it came from.
unsafe impl GlobalAlloc for ServerAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > ALIGNMENT_MAX {
            // SAFETY: passes the caller's promise on.
            return unsafe { System.alloc(layout) };
        }
        // SAFETY: the function pointer is set by RedisModule_Init, before the first allocation.
        unsafe { raw::RedisModule_Alloc.expect(BEFORE_LOAD)(layout.size()).cast() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() > ALIGNMENT_MAX {
            // SAFETY: passes the caller's promise on.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as in `alloc`.
        unsafe { raw::RedisModule_Calloc.expect(BEFORE_LOAD)(1, layout.size()).cast() }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.align() > ALIGNMENT_MAX {
            // SAFETY: passes the caller's promise on; `alloc` took the same turn for this layout.
            return unsafe { System.dealloc(block, layout) };
        }
        // SAFETY: the block came from the server's allocator.
        unsafe { raw::RedisModule_Free.expect(BEFORE_LOAD)(block.cast::<c_void>()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.align() > ALIGNMENT_MAX {
            // SAFETY: passes the caller's promise on; `alloc` took the same turn for this layout.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the block came from the server's allocator.
        unsafe { raw::RedisModule_Realloc.expect(BEFORE_LOAD)(block.cast::<c_void>(), size).cast() }
    }
}
